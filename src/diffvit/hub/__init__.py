"""Weights from elsewhere: files that others wrote, and Vision Transformers that others trained."""
