"""Configs of the smallest runs, for tests that need one."""

import errno
import os

from PIL import Image

from diffvit.config import merge, parse
from diffvit.training.progress import Progress

SMALL = {
    **{"data": "shapes", "shapes": {"train": 40, "test": 20, "size": 16}, "validation_size": 0},
    **{"epochs": 1, "batch_size": 16, "threads": 1, "precision": "fp32", "device": "cpu"},
    "model": {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


def small(*layers, **changes):
    """One epoch of forty images by a model of one block, with changes laid over."""
    return parse(merge(SMALL, *layers, changes))


def full(*_):
    """In the place of a function that writes: the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pictures(root, labels, train=1, test=1):
    """A data folder with so many pictures of each class in train and in test, no two alike."""
    for split, count in (("train", train), ("test", test)):
        for place, label in enumerate(labels):
            for number in range(count):
                file = root / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (20 * place, 20 * number, 40 if split == "train" else 50)).save(file)
    return root


class Recorder(Progress):
    """Keeps what it is told, and acts at a step of the run, or at the end of an epoch."""

    def __init__(self, at=None, action=None, epoch=None):
        self.lines, self.steps, self.started, self.closed = [], [], None, False
        self.at, self.at_epoch, self.action = at, epoch, action

    def start(self, total_steps, epochs, title):
        self.started = (total_steps, epochs, title)

    def step(self, values):
        self.steps.append(values)
        if self.at is not None and values["step"] >= self.at:
            self.at = None
            self.action()

    def epoch(self, row):
        if row["epoch"] == self.at_epoch:
            self.action()

    def message(self, text):
        self.lines.append(text)

    def close(self):
        self.closed = True
