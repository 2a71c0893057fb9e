"""geoseg: find and count objects in aerial imagery overnight."""

__version__ = "0.1.0"
