"""Answers over HTTP: what a run that is through predicts of rows as they come."""
