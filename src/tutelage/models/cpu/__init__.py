"""Kernels for processors, and Llama's kin on them."""
