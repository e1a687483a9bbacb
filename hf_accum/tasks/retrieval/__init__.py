"""Which text belongs to another."""
