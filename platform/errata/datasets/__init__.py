"""Edits read from files, in order: sources, records, reader, skip_report, duplicates.

Beneath `records`: lines, json_records, csv_records, csv_lines. Parquet has its own path (parquet). `formats` converts the
datasets of the field.
"""
