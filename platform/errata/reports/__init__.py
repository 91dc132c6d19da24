"""Report pages: one self-contained HTML file about a ledger or a benchmark, with its figures as PNGs.

Files in reading order: write (the entry point), page (what a page is made of, and its HTML), figures (SVG and PNG);
ledger_history, ledger_figures, ledger_page; benchmark_answers, benchmark_figures, benchmark_page.
"""
