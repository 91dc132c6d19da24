"""Commands of jobs, each in a process of its own: one process imports for seconds, and forks for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[3]
# A child runs a script, or code, to its end or its error as Python does; its output goes to two files.
FORKING = """
import gc, json, os, runpy, sys
import jobs.bench, jobs.moments, jobs.train
gc.freeze()  # A child that ends would else look at all that was imported.
for line in sys.stdin:
    command, environment, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, path in enumerate([os.devnull, *files]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
        os.environ.clear()
        os.environ.update(environment)
        script, *sys.argv[1:] = command
        sys.argv[0] = script if script.endswith(".py") else "-c"
        runpy.run_path(script, run_name="__main__") if script.endswith(".py") else exec(script, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Commands:
    """The process that forks. Each output is in files of `folder` until the next command."""

    process: subprocess.Popen[str]
    folder: Path

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> CompletedProcess[str]:
        """Run a script of the repository, or code, with its arguments; waits for its end."""
        files = [self.folder / "stdout", self.folder / "stderr"]
        for file in files:
            file.write_text("")
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([command, dict(environment), *map(str, files)]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return CompletedProcess(command, code, *(file.read_text() for file in files))


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Start the process that forks; it ends with the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKING], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield Commands(process, folder)
        assert process.stdin is not None
        process.stdin.close()
