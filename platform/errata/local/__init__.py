"""Services and processes of one machine.

In reading order: preflight.py, services.py, pidfile.py, terminal.py.
"""
