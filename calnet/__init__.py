"""Calnet: a peer-to-peer encrypted network that people run themselves."""

__version__ = "0.1.0"
