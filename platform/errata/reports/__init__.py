"""Pages about a ledger or a benchmark: `errata.report` writes them."""
