"""Variants of differential attention and controls, a file each; they are registered in :mod:`diffvit.registry`."""
