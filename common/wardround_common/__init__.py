"""What server and sites share: words, files, wire format, models. A leaf: it imports neither."""

__version__ = "0.1.0"
