"""Real models and data that come as packages, so that the recipes run without a hub."""
