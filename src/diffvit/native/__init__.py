"""Attention in C for a CPU that multiplies bfloat16, compiled when first wanted; done without where it cannot be."""
