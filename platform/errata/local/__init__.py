"""Services and processes of one machine.

In reading order: services.py, pidfile.py, terminal.py.
"""
