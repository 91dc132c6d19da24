"""Services and processes of one machine.

In reading order: problems.py, matrix_check.py, models.py, preflight.py, services.py, pidfile.py, terminal.py.
"""
