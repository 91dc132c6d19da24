"""The lifelong benchmark: every editor makes the same stream of edits and is scored on all edits so far at checkpoints.

Results and tables are here; HTML pages about them are in `errata.reports`, and the suites on Ray in `jobs`.
"""
