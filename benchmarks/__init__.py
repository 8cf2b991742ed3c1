"""Speed beside timm, vit-pytorch and transformers, measured in one process, in turns."""
