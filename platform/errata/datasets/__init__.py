"""Edits read from files: sources, records of each file type, checks, duplicates, and a report of what is skipped.

Records are read in order and one at a time. Conversions of published datasets are in `formats`.
"""
