"""How each public set is made from its source files: pure functions from bytes to bytes."""
