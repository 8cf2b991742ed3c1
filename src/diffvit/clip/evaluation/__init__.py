"""CLIP and other image classifiers put to the test on labelled pictures."""
