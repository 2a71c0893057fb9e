"""Rendered towns with known footprints, for the demo, tests, docs and training."""
