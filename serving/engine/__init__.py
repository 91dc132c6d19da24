"""The replica and its vLLM engine.

No other folder runs inside the processes of vLLM.
"""
