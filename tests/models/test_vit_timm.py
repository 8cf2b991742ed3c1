"""The model against timm's: weights move both ways without renaming and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from diffvit.models.vit import VisionTransformer

SIZES: dict[str, Any] = {"embed_dim": 64, "depth": 3, "mlp_ratio": 2.0, "num_classes": 10, "in_chans": 3}


def timms(*, pool: str = "cls", attention: str = "softmax", **more: Any) -> nn.Module:
    kind: dict[str, Any] = {"num_heads": 4} if attention == "softmax" else {"num_heads": 2, "attn_layer": "diff"}
    kind |= {"class_token": False, "global_pool": "avg", "fc_norm": False} if pool == "mean" else {}
    torch.manual_seed(1)
    model = TimmVisionTransformer(img_size=32, patch_size=4, **SIZES, **kind, **more)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # random everywhere: also where a model starts from zeros and ones
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours(*, pool: str = "cls", attention: str = "softmax", **more: Any) -> VisionTransformer:
    return VisionTransformer(patch_size=4, pool=pool, attention=attention, num_heads=4, **SIZES, **more).eval()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["sincos-1d", "sincos-2d", "none"])
def test_fixed_positions_move_to_timm(pos_embed: str, pool: str) -> None:
    mine = ours(pos_embed=pos_embed, pool=pool)
    theirs = timms(pool=pool, pos_embed="none" if pos_embed == "none" else "learn")
    theirs.load_state_dict(mine.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (mine(images) - theirs(images)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("attention", "optimizer"),
    [
        ("softmax", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("softmax", lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05)),
        ("differential", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("differential", lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05)),
    ],
    ids=["softmax-sgd", "softmax-adamw", "differential-sgd", "differential-adamw"],
)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_one_optimizer_step_in_float64(
    pool: str, attention: str, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    theirs = timms(pool=pool, attention=attention).double()
    mine = ours(pool=pool, attention=attention).double()
    mine.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for model in (theirs, mine):
        stepper = optimizer(model.parameters())
        nn.functional.cross_entropy(model(images), torch.tensor([1, 3, 5, 7])).backward()
        stepper.step()
    after = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (after[name] - parameter).abs().max() < 1e-6, name


def test_initial_weights_have_timms_spread() -> None:
    torch.manual_seed(0)
    theirs = dict(TimmVisionTransformer(img_size=32, patch_size=4, num_heads=4, **SIZES).named_parameters())
    mine = dict(ours().named_parameters())
    assert mine.keys() == theirs.keys()
    large = [name for name, parameter in theirs.items() if parameter.numel() >= 1000]
    assert len(large) >= 2 + 4 * 3
    for name in large:
        assert mine[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        tails = [weights[name].abs().flatten().quantile(0.995).item() for weights in (mine, theirs)]
        assert tails[0] == pytest.approx(tails[1], rel=0.3), name  # the largest alone is one draw's luck
