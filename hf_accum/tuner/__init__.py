"""What fits into memory: predicted, verified, kept."""
