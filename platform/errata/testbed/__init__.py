"""Testbeds: invented and real facts to edit, and the models that are trained on them or asked for them.

A corpus has sentences to train a small model on and edits of its facts. Real facts are asked of a real model first, and only
those that it gets wrong become edits.
"""
