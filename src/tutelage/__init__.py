"""tutelage: language models that follow instructions, trained with human feedback (Ouyang et al. 2022)."""

__version__ = "0.1.0"
