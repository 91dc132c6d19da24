"""A file system in a file, whose state at any moment can be copied: what a disk holds after a power cut.

A process that is killed leaves its writes in the page cache, so only a copy of the device shows what was not synced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SIZE_BYTES = 256 * 2**20
UNMOUNT_S = 20.0
# Without a commit of the file system's own every 5 s, and without a sync of what is renamed: nothing hides a missing sync.
OPTIONS = "loop,commit=300,noauto_da_alloc"


class CannotMount(RuntimeError):
    """The reason why this machine mounts no file system for the tests."""


@dataclass
class LoopDisk:
    """An ext4 file system in the file `image`, mounted at `folder`."""

    image: Path
    folder: Path

    @classmethod
    def make(cls, directory: Path) -> LoopDisk:
        """Make and mount a file system. Raises `CannotMount` where that takes rights or programs that are missing."""
        disk = cls(directory / "disk.img", directory / "disk")
        if missing := [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]:
            raise CannotMount(f"there is no {', '.join(missing)} here")
        if os.geteuid() != 0:
            raise CannotMount("to mount a file system one must be root")
        disk.folder.mkdir(parents=True, exist_ok=True)
        with disk.image.open("wb") as image:
            image.truncate(SIZE_BYTES)
        _run("mkfs.ext4", "-q", str(disk.image))
        disk.mount()
        return disk

    def mount(self) -> None:
        _run("mount", "-o", OPTIONS, str(self.image), str(self.folder))

    def unmount(self) -> None:
        """Unmount as soon as no process has a file open there."""
        deadline = time.monotonic() + UNMOUNT_S
        while True:
            try:
                return _run("umount", str(self.folder))
            except CannotMount:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def copy(self) -> Path:
        """Copy the device as it is now; what only the page cache holds is not in it."""
        copy = self.image.with_suffix(".cut")
        _run("cp", "--sparse=always", str(self.image), str(copy))
        return copy

    def return_to(self, copy: Path) -> None:
        """Mount a copy in place of the device; the file system then recovers as after a power cut."""
        self.unmount()
        os.replace(copy, self.image)
        self.mount()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotMount(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
