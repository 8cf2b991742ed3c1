"""A small CLIP of our own: a ViT and a text tower, trained on images with captions."""
