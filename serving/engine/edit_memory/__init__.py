"""Memory of edits in front of vLLM and inside its workers, by mechanism: before the model reads a request, or while it does.

What a record does is decided in `errata.edit_memory`, the same for every engine.
"""
