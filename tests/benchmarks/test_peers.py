from __future__ import annotations

import pytest
import torch

from benchmarks.peers import MODELS, build, parameters_of
from benchmarks.settings import Sizes
from benchmarks.throughput import forward_flops

TINY = Sizes(embed_dim=24, depth=2, num_heads=2, num_classes=7, image_size=16, batch_size=3)


def test_at_the_real_size_all_have_our_parameters_within_one_percent() -> None:
    sizes = Sizes()
    counts = {name: parameters_of(build(name, sizes)) for name in MODELS}
    ours = counts["diffvit"]
    assert ours == 2_697_610
    assert counts["timm"] == counts["transformers"] == ours
    assert counts["timm differential"] == counts["diffvit differential"] == ours + 9 * (4 * 32 + 64)
    for name, count in counts.items():
        assert abs(count / ours - 1) < 0.01, name


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_logits_and_trains_whole(name: str) -> None:
    model = build(name, TINY)
    logits = model(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_flops_are_those_of_a_hand_count() -> None:
    tokens, dim, hidden, patch = 17, 24, 48, 48
    linear = 2 * dim * 3 * dim + 2 * dim * dim + 2 * 2 * dim * hidden
    block = tokens * linear + 2 * 2 * tokens * tokens * dim
    rest = 2 * 16 * patch * dim + 2 * dim * 7
    for name in ("timm", "vit-pytorch", "transformers"):
        assert forward_flops(build(name, TINY), TINY) == rest + 2 * block, name
    # In our last block only [CLS] asks, and its query and what it reads go through the weights of keys and values: all
    # for one token, but for the products with every token, one row a head.
    last = linear + TINY.num_heads * 2 * 2 * tokens * dim
    assert forward_flops(build("diffvit", TINY), TINY) == rest + block + last
