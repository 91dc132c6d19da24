"""Benchmarks with commands of their own (`make bench-NAME`); jobs/bench.py runs the comparison of editors.

Each command is a script that prints a table and writes report.json; the other files are parts that several scripts share.
"""
