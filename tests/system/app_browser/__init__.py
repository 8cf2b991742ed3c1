"""The page in a real browser: one server and one Chromium for all of these, hence a package with its own fixtures."""
