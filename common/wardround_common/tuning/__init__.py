"""Which parameters a federation trains: one file a method."""
