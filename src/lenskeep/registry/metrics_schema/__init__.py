"""Numbered steps of the metrics database's schema, applied in order and once."""
