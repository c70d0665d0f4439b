"""Numbered steps of the fleet's schema, applied in order and once."""
