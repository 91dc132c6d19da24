"""Reports of a ledger or a benchmark (`errata report`): one self-contained HTML page, and its figures as PNGs beside it."""

from __future__ import annotations

from pathlib import Path

from errata.durable import replaced, write_text
from errata.reports.page import Page, html

PAGE = "index.html"


def page_of(path: str | Path) -> Page:
    """Build the page of the ledger or the benchmark in folder `path`.

    Raises `FileNotFoundError` if the folder does not exist, and `ValueError` if it has neither or one of its files is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    if _is_ledger(path):
        from errata.reports.ledger_page import ledger_page

        return ledger_page(path)
    if _is_benchmark(path):
        from errata.reports.benchmark_page import benchmark_page

        return benchmark_page(path)
    inside = [str(one) for one in sorted(path.iterdir()) if one.is_dir() and (_is_ledger(one) or _is_benchmark(one))]
    hint = f"; did you mean {' or '.join(inside[:3])}?" if inside else ""
    raise ValueError(f"{path} is neither a ledger (no versions/00000000) nor the folder of a benchmark (no rows.parquet){hint}")


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Write `index.html` and the PNGs into `out`, by default `path`/report, and return the path of the page.

    Files of the same names are replaced. Raises like `page_of`, and `OSError` if `out` cannot be written.
    """
    folder = Path(path) / "report" if out is None else Path(out)
    page = page_of(path)
    text = html(page)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in page.pictures:
        with replaced(folder / f"{picture.name}.png") as file:
            file.write_bytes(picture.png)
    write_text(folder / PAGE, text)
    return folder / PAGE


def _is_ledger(path: Path) -> bool:
    return (path / "versions" / "00000000").is_dir()


def _is_benchmark(path: Path) -> bool:
    return (path / "rows.parquet").is_file()
