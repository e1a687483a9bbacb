"""Metric modules for `evaluate`, one folder each, loaded by path."""
