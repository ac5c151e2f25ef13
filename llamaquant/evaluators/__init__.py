"""Evaluators: what is measured of a loaded model, blind to the method that made it."""
