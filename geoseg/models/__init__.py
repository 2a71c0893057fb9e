"""From tiles to instances: the detector protocol, Mask R-CNN, model cards and weights."""
