"""Attention maps of a trained model, rollout, attribution, statistics of heads, and scores of saliency maps.

``attribute``, ``capture`` and ``rollout`` are functions here, though modules have these names too: the imports below
stand last.
"""

from diffvit.attention.attribute import METHODS, attribute
from diffvit.attention.capture import Record, capture, captures
from diffvit.attention.rollout import rollout, rollout_matrix

__all__ = ["METHODS", "Record", "attribute", "capture", "captures", "rollout", "rollout_matrix"]
