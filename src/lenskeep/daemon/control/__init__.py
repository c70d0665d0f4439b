"""The control API: one table of routes over a Unix socket and loopback TCP."""
