"""From a file to tiles: open, describe, georeference, lay the grid, read."""
