"""Closed-form editors: locate the edit position, find a target vector, and solve for the weights.

One file for each method; the other files are the steps that the methods share.
"""
