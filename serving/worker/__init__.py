"""The edit worker, the single writer of the ledger.

Files in reading order: edit_worker.py, edit_loop.py, publish.py, reconcile.py, live_model.py, journal.py, replicas.py,
events.py, mlflow_mirror.py.
"""
