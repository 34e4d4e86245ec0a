"""The baseline: a Flower app as its documentation writes them."""
