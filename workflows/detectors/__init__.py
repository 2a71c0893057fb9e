"""Detectors of one's own, to copy from: a rule, a YOLO model in ONNX, prompts for Segment Anything.

Put the folder above this one on ``PYTHONPATH`` and name a factory::

    PYTHONPATH=workflows geoseg detect town.tif -o roofs.gpkg \
        --detector detectors.coloured_roofs:make

``docs/detectors.md`` explains what geoseg asks of a detector.
"""
