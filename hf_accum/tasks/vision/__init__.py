"""A class for each image, or for each of its pixels."""
