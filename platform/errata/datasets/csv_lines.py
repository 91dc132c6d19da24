"""The lines of a CSV file as its rows take them, which shows where a quote was left open: it would take in record after record,
and they would count as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from errata.edit import Code, EditRejected

MAX_CELL_LINES = 64
MAX_ROW_LINES = 1024
CELL = re.compile(r'"(?:[^"]|"")*+"|(?!")[^,]*')  # one that ends on this line, if it begins there
REST = re.compile(r'(?:[^"]|"")*+"')  # of a cell that began on an earlier line


class RowLines:
    """Lines for the CSV reader, which takes as many as it needs for a row. A faulty one stays out and goes to `faults`.

    `of_row` are those of the row being read: whoever takes the row clears them. Raises `EditRejected` when a quoted cell goes
    on for more than `MAX_CELL_LINES` lines, or a row for more than `MAX_ROW_LINES`.
    """

    def __init__(self, lines: Iterator[str | EditRejected]) -> None:
        self._lines = lines
        self.faults: list[EditRejected] = []
        self.of_row: list[str] = []
        self.num_read, self.is_at_end = 0, False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.num_read += 1
            if isinstance(line, EditRejected):
                self.faults.append(line)
                line = "\n"  # keeps the reader from taking the next line for the answer to this one
            self.of_row.append(line)
            yield line
            if len(self.of_row) >= MAX_CELL_LINES and len(self.of_row) - _opened(self.of_row) >= MAX_CELL_LINES:
                raise self.left_open(f"has no end within {MAX_CELL_LINES} lines")
            if len(self.of_row) >= MAX_ROW_LINES:
                raise self.left_open(f"is of a row that has no end within {MAX_ROW_LINES:,} lines")
        self.is_at_end = True

    def left_open(self, why: str) -> EditRejected:
        """Says in which line of the file, from 1, the quote was opened."""
        line = self.num_read - len(self.of_row) + _opened(self.of_row) + 1
        return EditRejected(
            f"the CSV is damaged here: the quote opened in line {line:,} {why}; nothing after it can be read",
            code=Code.UNREADABLE_FILE,
        )


def _opened(lines: list[str]) -> int:
    """Which line of a row opens the quote that its last line leaves open, or closes in a way that is not CSV."""
    opened, is_open = 0, False
    for number, line in enumerate(lines):
        at = 0
        while True:
            cell = (REST if is_open else CELL).match(line, at)
            if cell is None:  # the cell goes on in the next line
                opened, is_open = (opened if is_open else number), True
                break
            is_open, at = False, cell.end() + 1
            if not line.startswith(",", cell.end()):
                break
    return opened
