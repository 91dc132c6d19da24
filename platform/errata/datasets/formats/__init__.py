"""Formats of the published datasets and their conversion to edits: table, fields, then one file per dataset."""
