"""The command line `errata`: one file for each group of commands.

A command reads its options and shows results; the work is done elsewhere.
"""

from errata.cli.main import app

__all__ = ["app"]
