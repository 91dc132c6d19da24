"""Pages about a ledger or a benchmark: `errata.reports.write` writes them."""
