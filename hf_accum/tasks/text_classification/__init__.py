"""A class for each text, several, or a number."""
