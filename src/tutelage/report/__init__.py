"""What came of it: one self-contained page and a summary, drawn from run folders alone."""
