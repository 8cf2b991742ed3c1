"""Vision Transformers and Differential Vision Transformers, one part per file; import from the files themselves."""
