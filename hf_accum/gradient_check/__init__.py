"""Is a loss the same, however its batch is cut? Findings on anybody's model, loss and data, each with its reason."""
