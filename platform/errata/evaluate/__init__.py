"""Evaluation of an edited model on the questions of its edits, by generation, teacher forcing, likelihood and perplexity.

Each kind of measure has a file of its own; the questions and the confidence intervals are shared.
"""
