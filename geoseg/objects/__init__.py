"""From instances to objects: vectorize, stitch, count, compare, evaluate.

Pure: no files, no torch, no dask.
"""
