"""Entities in the words of a text."""
