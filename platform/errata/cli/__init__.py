"""The command line, `errata`: main.py, console.py, and one file for each group of commands."""

from errata.cli.main import app

__all__ = ["app"]
