"""From labels to a model: chips, training."""
