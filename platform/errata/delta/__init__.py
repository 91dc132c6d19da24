"""Weight deltas: the change of a model's matrices that an edit makes.

A delta is a value: it can be added, saved, applied beside the weights, and written into them. No file here knows an editor.
"""
