"""The site worker: the process that sees patients, and answers one step at a time."""
