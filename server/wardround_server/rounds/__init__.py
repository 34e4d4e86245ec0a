"""The round engine: cohort, quorum, deadline, admission, journal."""
