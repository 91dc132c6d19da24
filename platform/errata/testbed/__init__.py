"""The embedded default: a small world of facts and a small Llama that knows it, both made on this machine."""
