"""Data at a site: read, check against the federation's schema, split by patient, load."""
