"""The service on Ray Serve and vLLM.

In reading order: app.py, api/, engine/, worker/, metrics.py, logs.py, tracing.py.
"""
