"""Pretrained backbones: found, checked against their pinned digest, loaded."""
