"""What writes the generated documents from committed results: ``python -m tools [--check] [NAME ...]``."""
