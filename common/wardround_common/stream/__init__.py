"""The tensor stream: one long call between a site's node and the aggregator, for one run."""
