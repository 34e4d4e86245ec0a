"""The centre of a consortium: what it runs, who takes part, and its runs."""
