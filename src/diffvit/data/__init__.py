"""Images in, labelled and fingerprinted; import from the files themselves."""
