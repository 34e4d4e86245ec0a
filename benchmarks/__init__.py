"""Measurements of speed, size and accuracy: every figure of docs/measurements.md."""
