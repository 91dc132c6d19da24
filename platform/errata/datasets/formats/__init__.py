"""Formats of the published datasets and their conversion to edits: one file for each dataset, and the table of them."""
