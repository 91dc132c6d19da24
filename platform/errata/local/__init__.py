"""Services and processes of one machine, started and stopped by commands and jobs."""
