"""The hospital's policy: what may leave, judged where the data is."""
