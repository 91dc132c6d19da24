"""The command line, `errata`: one file for each group of commands, put together in main.py."""

from errata.cli.main import app

__all__ = ["app"]
