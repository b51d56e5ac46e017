"""Measurements, each printed as JSON lines and a table of ratios."""
