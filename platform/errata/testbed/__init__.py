"""The testbed: a small invented world of facts and a small Llama that is trained on it, both made on this machine.

Files in reading order: corpus (the protocol), world, counterfact (a dataset as corpus), harmful_edits, language_model.
"""
