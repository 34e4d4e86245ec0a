"""What a round costs beside its training: our federation against a plain Flower app."""
