"""A run's files, read and shown: no model and no torch."""
