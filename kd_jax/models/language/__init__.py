"""Language models as text encoders, one file for each architecture or file format."""
