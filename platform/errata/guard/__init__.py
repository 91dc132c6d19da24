"""The guard: limits on what an update may do to the model, and the measurements that they apply to.

Files in reading order: limits.py, inspector.py, probe_answers.py, edit_sample.py, probes.py, bisection.py.
"""
