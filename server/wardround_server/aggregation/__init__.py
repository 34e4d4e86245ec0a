"""How contributions become one: one rule a file."""
