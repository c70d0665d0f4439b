"""Numbered steps of the registry's schema, applied in order and once."""
