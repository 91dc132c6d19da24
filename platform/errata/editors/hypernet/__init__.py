"""Hypernetwork editors: a trained network turns keys and gradients into weight updates.

One file for each method; the other files are the network, its training, and the base class of the methods.
"""
