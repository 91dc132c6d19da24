"""Memory of edits: what is kept beside the weights, and how it is read while a model runs.

A kind of memory is computed in one place, for every engine. No file here knows an editor.
"""
