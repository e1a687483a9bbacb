"""Formats of files that are read row by row."""
