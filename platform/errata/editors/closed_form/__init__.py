"""Closed-form editors: locate the edit position, find a target vector, and solve for the weights.

locate_then_edit.py (what they share), contexts.py, intervention.py, targets.py, moments.py, multi_layer.py; the methods:
rome.py, memit.py, alphaedit.py, nse.py; ultraedit.py, which needs no target.
"""
