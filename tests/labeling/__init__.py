"""Tests of the labeling server and its store. A package, as two `conftest` modules could not be told apart."""
