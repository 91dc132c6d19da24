"""Deltas: the change that an edit makes to a model's matrices, or to the memory beside them.

A delta is a value: it can be added, saved, applied beside the model, and put into it. No file here knows an editor.
"""
