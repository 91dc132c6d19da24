"""Fine-tuning editors: gradient descent on the answers of a batch.

One file for each method, and the descent that the methods share.
"""
