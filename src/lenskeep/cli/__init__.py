"""The command line: flat verbs for technicians, noun and verb for engineers."""
