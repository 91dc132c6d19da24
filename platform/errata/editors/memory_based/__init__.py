"""Editors that keep their edits in a memory beside the weights, and change no weight."""
