"""Certificates of a consortium."""
