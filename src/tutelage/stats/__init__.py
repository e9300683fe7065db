"""Intervals whose unit is the prompt, and how far labelers agree."""
