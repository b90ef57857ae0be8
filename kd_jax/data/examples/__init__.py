"""Training examples, one file for each kind."""
