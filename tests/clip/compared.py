"""Made answers of a model, for tests of what compares two."""

from __future__ import annotations

import torch

from diffvit.clip.evaluation.answers import Answers, answers_of

CLASSES = 3
UNREADABLE = 7


def made_answers(seed: int, count: int = 90) -> Answers:
    """More often right than wrong; one picture could not be read."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    chances = torch.rand(count, CLASSES, generator=generator)
    chances[torch.arange(count), labels] += 0.3
    readable = torch.arange(count) != UNREADABLE
    return answers_of(chances / chances.sum(1, keepdim=True), labels, readable)
