"""The lifelong benchmark: every editor makes the same stream of edits and is scored on all edits so far at checkpoints.

Files in reading order: stream (edits and the unedited answers), run (the loop), checkpoint (the scores at a checkpoint),
results (the table of measures and its records), summary (over seeds), tables, curves, files, arguments (of `errata bench`).
"""
