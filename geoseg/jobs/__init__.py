"""Run it all: the run directory, Dask workers, the pipeline."""
