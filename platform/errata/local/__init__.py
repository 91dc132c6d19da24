"""Services and processes of one machine: services.py, pidfile.py, terminal.py."""
