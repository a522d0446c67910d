"""What a model can be trained for: one frozen dataclass a file, which loads a model and makes batches of data."""
