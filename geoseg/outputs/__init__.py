"""From objects to users: tables, styles, pictures.

`tables` is the door: what is written and read has its names there. Behind it: `formats` (what can
be written), `objects_file` (the run's own file, a stream), `sorting` (another order, without
holding all), `layers` and `geojson` (what GDAL writes), `geopackage`, `coco`, `split` (several
files), `fields` (the data dictionary), `style`, `reading`, and `publish`, by which nothing is ever
half replaced.
"""
