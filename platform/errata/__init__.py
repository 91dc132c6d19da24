"""Errata keeps a served language model correct: edits in, versions out, any version back."""

__version__ = "0.1.0"
