"""A training step only queues work on an accelerator: it never waits for what is queued.

torch's ``meta`` device stands in for one: it has shapes and no values, so anything that would have to wait for a value
raises, and copies from main memory can be watched.
"""

import contextlib

import pytest
import torch
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from diffvit.config import parse
from diffvit.data import shapes
from diffvit.training import loop, optimizers
from diffvit.training.loop import Trainer
from diffvit.training.task import Classification, TrainingData, build_model

META = torch.device("meta")
AUGMENT = {"flip": True, "crop": 2, "policy": "trivialaugment", "cutmix": 1.0, "mix_probability": 0.5, "erasing": 0.2}
OTHERS = {"color_jitter": 0.3, "policy": "randaugment", "mixup": 0.8}


class Device:
    """What a trainer asks of its fabric, on one device, without autocast, which meta has not."""

    device, world_size, global_rank = META, 1, 0

    def setup_module(self, module):
        return module

    def backward(self, loss):
        loss.backward()

    def no_backward_sync(self, module, enabled):
        return contextlib.nullcontext()


class Waits(TorchDispatchMode):
    """Counts copies from main memory that are waited for."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.copies += not (kwargs or {}).get("non_blocking", False)
        return result


@pytest.mark.parametrize(
    ("attention", "changes"),
    [
        ("softmax", {"augment": AUGMENT, "ema": 0.99, "optimizer": {"name": "muon", "split_qkv": True}}),
        ("differential", {"augment": OTHERS, "optimizer": {"name": "muon"}}),
        ("differential", {"augment": AUGMENT | OTHERS, "accumulate": 2, "optimizer": {"grad_clip": 1.0}}),
    ],
)
def test_steps_wait_for_nothing(attention, changes, monkeypatch):
    looks = []

    def look(self):
        looks.append(self.position.step)
        self._pending = None

    monkeypatch.setattr(Trainer, "_read", look)
    # torch's fused AdamW, which waits for nothing, refuses meta.
    monkeypatch.setattr(optimizers, "AdamW", lambda *given, fused, **more: AdamW(*given, foreach=fused, **more))
    monkeypatch.setitem(loop._READ_EVERY, "meta", 32)
    model = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "attention": attention}
    config = parse({"data": "shapes", "batch_size": 8, "epochs": 2, "model": model, **changes})
    data = TrainingData("shapes", shapes.generate("train", 30, size=16), None, [0.5] * 3, [0.25] * 3, "", config)
    trained = Trainer(Device(), config, data, build_model(config.model, 0), Classification())
    with Waits() as waits:
        assert sum(1 for _ in trained.steps()) == 4
    assert waits.copies == 0
    assert looks == [0, 4]  # the run's first step, and the end of the epoch
    assert all(parameter.device == META for parameter in trained.parameters)
