"""Federation and site files as typed, frozen models."""
