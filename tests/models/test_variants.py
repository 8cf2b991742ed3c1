"""The variants of differential attention against loops over heads and queries, and the points where they are others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffvit.attention import capture, rollout
from diffvit.errors import ConfigError
from diffvit.experiments.study import flops_per_image
from diffvit.models.attention import Attention, DifferentialAttention, PairedAttention
from diffvit.models.variants.controls import (
    FreeDifferentialAttention,
    NonNegativeDifferentialAttention,
    SummedAttention,
)
from diffvit.models.variants.dint import DintAttention
from diffvit.models.variants.gated import GatedDifferentialAttention
from diffvit.models.variants.grouped import GroupedDifferentialAttention
from diffvit.models.variants.shared import SharedDifferentialAttention
from diffvit.models.variants.v2 import DifferentialAttentionV2
from diffvit.models.vit import VisionTransformer
from diffvit.registry import ATTENTION, FROM_LAMBDA_INIT
from diffvit.settings import Config, ModelConfig
from diffvit.training.score import flops_per_image as counted

DIM, HEADS, WIDTH, LAYER = 24, 4, 6, 2
NAMES = [name for name in ATTENTION if name not in ("softmax", "differential", "differential-split")]


def layer_of(name: str, **more: Any) -> Any:
    """A layer in float64, its norms and lambdas away from their start."""
    torch.manual_seed(3)
    layer = ATTENTION[name].build(DIM, HEADS, layer_index=LAYER, **more).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def row(query: Tensor, keys: Tensor) -> Tensor:
    scores = torch.stack([(query * key).sum() / math.sqrt(len(query)) for key in keys]).exp()
    return scores / scores.sum()


def lam_of(layer: Any, constant: float) -> Tensor:
    first, second = (layer.lambda_q1 * layer.lambda_k1).sum(), (layer.lambda_q2 * layer.lambda_k2).sum()
    return first.exp() - second.exp() + constant


def normed(layer: Any, head: Tensor) -> Tensor:
    return head / torch.sqrt((head**2).mean() + 1e-5) * layer.sub_norm.weight * (1 - layer.lambda_init)


def heads_v2(layer: Any, x: Tensor, t: int) -> list[Tensor]:
    q, k, v = (part.split(WIDTH, dim=1) for part in linear(layer.qkv, x).split(DIM, dim=1))
    q2, lam = linear(layer.q2, x).split(WIDTH, dim=1), torch.sigmoid(linear(layer.lambda_proj, x))
    return [(row(q[h][t], k[h]) - lam[t, h] * row(q2[h][t], k[h])) @ v[h] for h in range(HEADS)]


def paired(layer: Any, x: Tensor, t: int, mix: Callable[[Tensor, Tensor, int], Tensor]) -> list[Tensor]:
    """Heads of V1's layout; ``mix`` combines the two maps (query, key) of one head."""
    q, k, v = linear(layer.qkv, x).split(DIM, dim=1)
    q, k = (part.split(WIDTH, dim=1) for part in (q, k))
    heads = []
    for head, value in enumerate(v.split(2 * WIDTH, dim=1)):
        maps = [torch.stack([row(each, k[at]) for each in q[at]]) for at in (2 * head, 2 * head + 1)]
        heads.append(mix(maps[0], maps[1], head)[t] @ value)
    return heads


def heads_dint(layer: Any, x: Tensor, t: int) -> list[Tensor]:
    lam = lam_of(layer, layer.lambda_init)
    found = paired(layer, x, t, lambda one, two, _: one - lam * two + lam * one.mean(0).expand_as(one))
    return [normed(layer, head) for head in found]


def heads_gated(layer: Any, x: Tensor, t: int) -> list[Tensor]:
    gate = torch.sigmoid(linear(layer.gate, x))
    return paired(layer, x, t, lambda one, two, head: gate[:, head, None] * one - (1 - gate[:, head, None]) * two)


def heads_shared(layer: Any, x: Tensor, t: int) -> list[Tensor]:
    added = [x @ (up.weight @ down.weight).T for up, down in zip(layer.up, layer.down, strict=True)]
    queries, keys = linear(layer.q, x), linear(layer.k, x)
    maps = [((queries + added[i]).split(WIDTH, dim=1), (keys + added[2 + i]).split(WIDTH, dim=1)) for i in (0, 1)]
    lam, values = lam_of(layer, layer.lambda_init), linear(layer.v, x).split(2 * WIDTH, dim=1)
    rows = [[row(q[head][t], k[head]) for q, k in maps] for head in range(HEADS // 2)]
    return [normed(layer, (one - lam * two) @ value) for (one, two), value in zip(rows, values, strict=True)]


def heads_grouped(layer: Any, x: Tensor, t: int) -> list[Tensor]:
    q, lam = linear(layer.q, x).split(WIDTH, dim=1), lam_of(layer, layer.lambda_init)
    k, v = linear(layer.k, x), linear(layer.v, x)
    heads = []
    for group, (keys, value) in enumerate(zip(k.split(2 * WIDTH, dim=1), v.split(2 * WIDTH, dim=1), strict=True)):
        mine = q[group * (layer.ratio + 1) : (group + 1) * (layer.ratio + 1)]
        noise = row(mine[-1][t], keys[:, WIDTH:])
        heads += [normed(layer, (row(each[t], keys[:, :WIDTH]) - lam * noise) @ value) for each in mine[:-1]]
    return heads


LOOPS: dict[str, Callable[[Any, Tensor, int], list[Tensor]]] = {
    "differential-v2": heads_v2,
    "dint": heads_dint,
    "differential-gated": heads_gated,
    "differential-shared": heads_shared,
    "differential-grouped": heads_grouped,
    "differential-free": lambda m, x, t: paired(m, x, t, lambda one, two, _: one - lam_of(m, 0.0) * two),
    "differential-nonnegative": lambda m, x, t: paired(m, x, t, lambda one, two, _: one - lam_of(m, 0.0).abs() * two),
    "two-maps-sum": lambda m, x, t: paired(m, x, t, lambda one, two, _: one + two),
    "two-maps-mean": lambda m, x, t: paired(m, x, t, lambda one, two, _: (one + two) / 2),
}


def by_loop(name: str, layer: Any, x: Tensor) -> Tensor:
    images = [torch.stack([torch.cat(LOOPS[name](layer, image, t)) for t in range(len(image))]) for image in x]
    return linear(layer.proj, torch.stack(images))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_a_loop(name: str, bias: bool) -> None:
    layer = layer_of(name, qkv_bias=bias)
    x = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), by_loop(name, layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    inputs = [x, *layer.parameters()]
    for one, two in zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)
    maps = layer.maps(x.detach())
    assert maps.positive.shape[1] == ATTENTION[name].maps(HEADS)
    torch.testing.assert_close(layer.read(maps.effective, x), found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", FROM_LAMBDA_INIT)
def test_lambda_starts_around_a_constant_of_ones_own_in_every_layer(name: str) -> None:
    model = VisionTransformer(embed_dim=16, depth=3, num_heads=4, attention=name, lambda_init=0.3)
    for block in model.blocks:
        layer: Any = block.attn
        for vector in (layer.lambda_q1, layer.lambda_q2):
            torch.nn.init.zeros_(vector)
        assert layer.lam().item() == pytest.approx(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_and_has_finite_gradients(name: str) -> None:
    layer = layer_of(name)
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    expected, layer = layer(x).detach(), layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.float())
    assert found.dtype == torch.bfloat16
    assert float((found.detach().double() - expected).abs().max()) < 0.03 * float(expected.abs().max())
    found.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_rows_of_dint_sum_to_one_and_those_of_gates_to_twice_the_gate_less_one() -> None:
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    sums = layer_of("dint").maps(x).effective.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    gated = layer_of("differential-gated")
    gate = torch.sigmoid(gated.gate(x)).transpose(1, 2)
    torch.testing.assert_close(gated.maps(x).effective.sum(-1), 2 * gate - 1)


def test_where_nothing_is_subtracted_each_is_its_neighbour() -> None:
    """V2 is softmax attention, DINT is V1, and an open gate is free lambda at 0."""
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    v2 = layer_of("differential-v2")
    softmax = Attention(DIM, HEADS).double()
    softmax.load_state_dict({name: tensor for name, tensor in v2.state_dict().items() if name in softmax.state_dict()})
    v2.lambda_of = lambda x: x.new_zeros(())
    torch.testing.assert_close(v2(x), softmax(x))
    dint, v1 = layer_of("dint"), DifferentialAttention(DIM, HEADS, layer_index=LAYER).double()
    v1.load_state_dict(dint.state_dict())
    for each in (dint, v1):
        each.lam = lambda: torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(dint(x), v1(x))
    gated = layer_of("differential-gated")
    torch.nn.init.zeros_(gated.gate.weight)
    torch.nn.init.constant_(gated.gate.bias, 80.0)
    for name in ("differential-free", "differential-nonnegative"):
        layer = layer_of(name)
        layer.load_state_dict(gated.state_dict(), strict=False)
        for vector in (layer.lambda_q1, layer.lambda_q2):
            torch.nn.init.zeros_(vector)
        torch.testing.assert_close(layer(x), gated(x))


def test_one_first_map_a_group_and_whole_updates_are_v1() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    v1 = DifferentialAttention(DIM, HEADS, layer_index=LAYER).double()
    state = v1.state_dict()
    weight, bias = (state.pop(f"qkv.{name}").chunk(3) for name in ("weight", "bias"))
    grouped = GroupedDifferentialAttention(DIM, HEADS, layer_index=LAYER, ratio=1).double()
    both = {"weight": weight, "bias": bias}
    parts = {f"{part}.{name}": of[place] for name, of in both.items() for place, part in enumerate("qkv")}
    grouped.load_state_dict(state | parts)
    torch.testing.assert_close(grouped(x), v1(x))
    shared = SharedDifferentialAttention(DIM, HEADS, layer_index=LAYER, rank=DIM // 2).double()
    of_maps = [part.view(HEADS // 2, 2, WIDTH, DIM)[:, i].flatten(0, 1) for part in weight[:2] for i in (0, 1)]
    for shared_by_both in (shared.q, shared.k):
        torch.nn.init.zeros_(shared_by_both.weight)
        torch.nn.init.zeros_(shared_by_both.bias)
    torch.nn.init.zeros_(v1.qkv.bias)
    updates = {f"up.{i}.weight": torch.eye(DIM // 2, dtype=torch.float64) for i in range(4)}
    updates |= {f"down.{i}.weight": each for i, each in enumerate(of_maps)}
    values = {"v.weight": weight[2], "v.bias": torch.zeros(DIM, dtype=torch.float64)}
    shared.load_state_dict(state | updates | values, strict=False)
    torch.testing.assert_close(shared(x), v1(x))


PARAMETERS: dict[str, Callable[[int, int], int]] = {  # over softmax attention's
    "differential-v2": lambda d, h: d * d + d + d * h,
    "dint": lambda d, h: 4 * (d // h) + 2 * (d // h),
    "differential-grouped": lambda d, h: -d * d // 2 - d + 6 * (d // h),
    "differential-shared": lambda d, h: -d * d + 6 * d * (d // 16) - d + 6 * (d // h),
    "differential-gated": lambda d, h: (d + 1) * h // 2,
    "differential-free": lambda d, h: 4 * (d // h),
    "differential-nonnegative": lambda d, h: 4 * (d // h),
    "two-maps-sum": lambda d, h: 0,
    "two-maps-mean": lambda d, h: 0,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_parameters_and_operations_are_known_and_the_model_is_looked_into(name: str, pool: Any) -> None:
    more: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 4,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 4,
        "attention": name,
    }
    model = VisionTransformer(**more, pool=pool)
    base = VisionTransformer(**{**more, "attention": "softmax"}, pool=pool)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, base)]
    assert sizes[0] - sizes[1] == 2 * PARAMETERS[name](64, 4)
    assert counted(model) == flops_per_image(Config(model=ModelConfig(**more, pool=pool)))
    record = capture(model.eval(), torch.randn(3, 3, 16, 16), chunk=2)
    heat = rollout(record)
    assert heat.shape == (3, 4, 4)
    assert record.differential is (name != "two-maps-mean")
    keys = record.layers[0].positive.shape[-1]
    assert record.uniform(0) == pytest.approx(float(record.layers[0].effective.sum(-1).mean()) / keys, abs=1e-6)
    assert len(model.lambdas()) == (2 if hasattr(model.blocks[0].attn, "lam") else 0)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple of 4"):
        ModelConfig(num_heads=6, attention="differential-grouped")
    with pytest.raises(ConfigError, match="no multiple of 4"):
        GroupedDifferentialAttention(24, 6, layer_index=0)
    with pytest.raises(ConfigError, match="is odd"):
        PairedAttention(24, 3)
    with pytest.raises(ConfigError, match="one projection of queries"):
        VisionTransformer(attention="differential-shared", init="mimetic")


def test_every_variant_has_a_class_of_its_own() -> None:
    kinds = (DifferentialAttentionV2, DintAttention, GroupedDifferentialAttention, SharedDifferentialAttention)
    kinds += (GatedDifferentialAttention, FreeDifferentialAttention, NonNegativeDifferentialAttention)
    assert [type(layer_of(name)) for name in NAMES] == [*kinds, SummedAttention, PairedAttention]
