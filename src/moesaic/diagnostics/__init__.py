"""What the experts of a model learned, layer by layer."""
