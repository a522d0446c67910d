"""Checkpoints on disk: reading safetensors safely, checking them, and writing them as a stream that survives kill -9."""
