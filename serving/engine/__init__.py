"""The replica and its vLLM engine.

Files in reading order: generator.py, backend.py, readiness.py, plugin.py, weight_engine.py, checkpoint.py.
"""
