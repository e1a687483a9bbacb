"""A dataset as windows of examples."""
