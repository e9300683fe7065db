"""Scores of texts and of log-probabilities, by their published formulas; nothing here loads a model or torch."""
