"""The window: what it is, how it is cut and run, and its exact gradient."""
