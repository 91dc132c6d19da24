"""Weight deltas: the change of a model's matrices that an edit makes.

parts.py (low-rank, sparse and dense changes of one matrix), weight_delta.py (all matrices of an edit), side_branch.py (run a
model with a delta beside its weights), accumulator.py (add deltas to the weights).
"""
