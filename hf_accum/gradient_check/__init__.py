"""Is a gradient the same, however its batch is cut? Of anybody's loss, and of a run at its start."""
