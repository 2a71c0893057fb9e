"""Files that are broken on purpose, by seed and number, and what geoseg makes of them."""
