"""Fine-tuning editors: gradient descent on the answers of a batch.

descent.py (what they share); the methods: ftl.py, locft.py.
"""
