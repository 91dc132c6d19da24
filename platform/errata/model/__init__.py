"""The language model: its files, its matrices, its texts as tokens, its activations and its answers.

The weights of a loaded model are read here; they are changed in `errata.delta` alone.
"""
