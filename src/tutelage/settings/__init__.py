"""Every setting of every stage, torch-free, so that the command line parses before torch is imported."""
