"""Rounds with nothing to train over the tensor stream: latency, throughput, memory."""
