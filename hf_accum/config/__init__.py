"""The flags of a run."""
