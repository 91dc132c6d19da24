"""History of a ledger: what git calls log, checkout, diff, blame and revert.

Files in reading order: lineage.py, checkout.py, diff.py, blame.py, revert_selection.py, revert.py.
"""
