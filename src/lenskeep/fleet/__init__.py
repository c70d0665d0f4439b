"""The central peer: it serves the repository, admits devices, and takes their reports."""
