"""Models: loaded, adapted, quantised, saved."""
