"""The verbs of `lenskeep`, one module per kind of work; each is imported only when it is used."""
