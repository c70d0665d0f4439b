"""Lenskeep keeps the right model running on every camera."""
