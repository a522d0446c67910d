"""Checkpoints on disk: reading safetensors safely, checking them, writing them as a stream that survives kill -9."""
