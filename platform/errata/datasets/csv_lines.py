"""Lines of a CSV file, counted by row: a quote that is left open would otherwise swallow the following records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from errata.edit import Code, EditRejected

MAX_CELL_LINES = 64
MAX_ROW_LINES = 1024
CELLS = {  # by separator: a cell that begins and ends on this line
    separator: re.compile(rf'"(?:[^"]|"")*+"|(?!")[^{separator}]*') for separator in (",", ";", "\t")
}
REST = re.compile(r'(?:[^"]|"")*+"')  # the end of a cell that began on an earlier line


class RowLines:
    """Iterator of lines for `csv.reader`, which takes as many as a row needs. Faulty lines go to `faults` instead.

    `of_row` holds the lines of the current row; the caller clears it after each row. Raises `EditRejected` when a quoted cell
    has more than `MAX_CELL_LINES` lines, or a row more than `MAX_ROW_LINES`.
    """

    def __init__(self, lines: Iterator[str | EditRejected], separator: str = ",") -> None:
        self._lines, self.separator = lines, separator
        self.faults: list[EditRejected] = []
        self.of_row: list[str] = []
        self.num_read, self.is_at_end = 0, False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.num_read += 1
            if isinstance(line, EditRejected):
                self.faults.append(line)
                line = "\n"  # ends the row, so that the next line is not joined to it
            self.of_row.append(line)
            yield line
            if len(self.of_row) >= MAX_CELL_LINES and len(self.of_row) - _opened(self.of_row, self.separator) >= MAX_CELL_LINES:
                raise self.left_open(f"has no end within {MAX_CELL_LINES} lines")
            if len(self.of_row) >= MAX_ROW_LINES:
                raise self.left_open(f"is of a row that has no end within {MAX_ROW_LINES:,} lines")
        self.is_at_end = True

    def left_open(self, why: str) -> EditRejected:
        """Build the refusal that names the line, from 1, in which the quote was opened."""
        line = self.num_read - len(self.of_row) + _opened(self.of_row, self.separator) + 1
        return EditRejected(
            f"the CSV is damaged here: the quote opened in line {line:,} {why}; nothing after it can be read",
            code=Code.UNREADABLE_FILE,
        )


def _opened(lines: list[str], separator: str) -> int:
    """Index of the line whose quote is still open after the last line, or is closed there in a way that is not CSV."""
    opened, is_open = 0, False
    for number, line in enumerate(lines):
        at = 0
        while True:
            cell = (REST if is_open else CELLS[separator]).match(line, at)
            if cell is None:  # the cell continues on the next line
                opened, is_open = (opened if is_open else number), True
                break
            is_open, at = False, cell.end() + 1
            if not line.startswith(separator, cell.end()):
                break
    return opened
