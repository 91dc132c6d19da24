"""Hypernetwork editors: a trained network turns keys and gradients into weight updates.

hypernet_editor.py (what they share), net.py (the network), reward.py, episode_batch.py (the texts of a batch), episode.py (one
training episode), training.py; the methods: rledit.py, malmen.py, mend.py.
"""
