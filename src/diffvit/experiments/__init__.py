"""The experiments of the project: each a few lines over a base recipe, run by many processes, reported from rows."""
