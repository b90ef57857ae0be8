"""Teacher models: bi-encoder, cross-encoder, and the text tower that they use."""
