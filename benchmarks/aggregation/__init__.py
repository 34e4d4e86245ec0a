"""Aggregation: the weighted mean against Flower, and the LoRA product merge against a dense SVD."""
