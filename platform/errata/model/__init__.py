"""The language model: its tensors, its texts as tokens, and its activations.

language_model.py (load a model), checkpoint.py, architecture.py and tokenizer_files.py (its files, before it is loaded),
matrices.py (the editable matrices), devices.py (one device or several), encoding.py (text to
tensors), generation.py (greedy decoding), capture.py (keys and gradients), prefix_cache.py (activations before the edited
modules), key_moments.py (second moments of keys).
"""
