"""Texts and ids in, scores out."""
