"""A round with nothing to train, over the network: ours by both carriers beside a plain Flower app."""
