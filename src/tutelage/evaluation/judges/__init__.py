"""Judges behind one protocol: a reward model, a language model behind an endpoint, or a function of one's own."""
