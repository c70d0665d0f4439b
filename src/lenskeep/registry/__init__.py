"""The registry of this device: SQLite for facts, content-addressed files for bytes. SQL lives here."""
