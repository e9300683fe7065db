"""Policies and scalar models as Hugging Face models: loading, saving, tokens, packing, and forward passes."""
