"""How an update is written for the wire: one file a coding."""
