"""Settings of a run: one table per stage, with units and ranges."""
