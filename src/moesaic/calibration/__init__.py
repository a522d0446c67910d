"""Calibration: run the dense model over real data, and count what its FFNs see."""
