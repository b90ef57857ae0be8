"""Training examples: one file a kind."""
