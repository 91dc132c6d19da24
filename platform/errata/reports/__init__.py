"""Report pages: one self-contained HTML file about a ledger or a benchmark, with its figures as PNGs.

For a ledger as for a benchmark, data are collected first, then drawn, then put into a page.
"""
