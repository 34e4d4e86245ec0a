"""Training at a site: batches, schedule, local loop, cached features."""
