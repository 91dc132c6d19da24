"""The edit worker, the single writer of the ledger.

It keeps the journal of posted edits, makes versions of them, and has every replica swap.
"""
