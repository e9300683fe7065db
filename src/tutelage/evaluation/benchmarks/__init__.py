"""Public benchmarks in their published files, by their published formulas, over several models at once."""
