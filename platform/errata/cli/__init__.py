"""The command line `errata`.

In reading order: main.py, console.py, serve.py, edits.py, import_file.py, versions.py, score.py, report.py, bench.py, data.py,
keys.py, ledger.py.
"""

from errata.cli.main import app

__all__ = ["app"]
