"""Wrappers: editors that transform the change of another editor.

One file for each method, and the base class of the methods.
"""
