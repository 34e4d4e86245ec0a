"""The site node: the process with the network and without the data."""
