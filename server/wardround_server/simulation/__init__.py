"""The same federation on one machine."""
