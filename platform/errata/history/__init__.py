"""History of a ledger: what git calls log, checkout, diff, blame and revert.

A ledger is read here. Only a revert makes a version, and its caller appends it.
"""
