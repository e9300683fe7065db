"""A small world with a known answer to everything, in which a whole recipe runs in minutes."""
