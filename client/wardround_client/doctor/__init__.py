"""The doctor: what would make a run fail here, or mislead, is found before a run does."""
