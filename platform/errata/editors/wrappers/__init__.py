"""Wrappers: editors that transform the change of another editor.

wrapper.py (what they share); the methods: rect.py, prune.py, oedit.py.
"""
