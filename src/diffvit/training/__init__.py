"""The training loop, what it writes and what reads it back; import from the files themselves."""
