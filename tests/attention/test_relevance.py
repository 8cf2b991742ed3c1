"""Relevance propagation against the papers' rules written out layer by layer in float64, and what the rules keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from tiny import images_of, model_of
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.attention import attribute, capture
from diffvit.attention.capture import maps_in_graph
from diffvit.attention.relevance import Rules
from diffvit.errors import ConfigError
from diffvit.models.vit import VisionTransformer

Array = NDArray[np.float64]


class ByHand:
    """One image's forward pass, then relevances from the class down, each by the paper's rule; no autograd."""

    def __init__(self, model: VisionTransformer, image: Tensor, rules: str) -> None:
        self.weights = {name: each.detach().numpy() for name, each in model.state_dict().items()}
        self.model, self.rules = model, rules
        self.attention: list[Array] = []  # relevance of each layer's effective map, last layer first
        self.image = image.numpy()

    def linear(self, name: str, x: Array, of: Array) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        weight = weight.reshape(len(weight), -1)
        terms = x[:, None, :] * weight[None]  # (token, output, input)
        if self.rules == "attnlrp":
            whole = terms.sum(axis=2) + bias
        else:
            terms = np.maximum(terms, 0)
            whole = terms.sum(axis=2)
        return (terms * (of / whole)[:, :, None]).sum(axis=1)

    def norm(self, name: str, x: Array, out: Array, of: Array, *, centre: bool, eps: float) -> Array:
        if self.rules == "transformer":
            return of
        width = x.shape[-1]
        middle = np.eye(width) - (1 / width if centre else 0)
        centred = x @ middle
        scale = self.weights[f"{name}.weight"] / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
        terms = scale[..., :, None] * middle * x[..., None, :]  # (..., output, input)
        return (terms * (of / out)[..., :, None]).sum(axis=-2)

    def sum(self, a: Array, b: Array, of: Array) -> tuple[Array, Array]:
        of_a, of_b = a * of / (a + b), b * of / (a + b)
        if self.rules == "transformer":
            sizes = abs(of_a.sum()) + abs(of_b.sum())
            whole = of.sum()
            of_a = of_a * abs(of_a.sum()) / sizes * whole / of_a.sum()
            of_b = of_b * abs(of_b.sum()) / sizes * whole / of_b.sum()
        return of_a, of_b

    @staticmethod
    def product(a: Array, b: Array, of: Array) -> tuple[Array, Array]:
        terms = a[:, :, :, None] * b[:, None, :, :]  # (head, row, inner, column)
        shared = terms * (of / terms.sum(axis=2))[:, :, None, :] / 2
        return shared.sum(axis=3), shared.sum(axis=1)

    @staticmethod
    def softmax(scores: Array, weights: Array, of: Array) -> Array:
        return scores * (of - weights * of.sum(axis=-1, keepdims=True))

    def apply(self, name: str, x: Array) -> Array:
        weight = self.weights[f"{name}.weight"]
        return x @ weight.reshape(len(weight), -1).T + self.weights[f"{name}.bias"]

    def layer_norm(self, name: str, x: Array, eps: float = 1e-6) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def run(self, target: int) -> Array:
        """Relevance of each patch."""
        grid, side = self.model.grid[0], self.model.patch_embed.patch_size
        cut = self.image.reshape(3, grid, side, grid, side).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        patches = self.apply("patch_embed.proj", cut)
        x = np.concatenate([self.weights["cls_token"][0], patches]) if self.model.pool == "cls" else patches
        before, x = x, x + self.weights["pos_embed"][0]
        undo = []
        for index in range(len(self.model.blocks)):
            x, back = self.block(f"blocks.{index}", x)
            undo.append(back)
        normed = self.layer_norm("norm", x)
        prefix = self.model.prefix
        pooled = normed[:1] if self.model.pool == "cls" else normed.mean(axis=0, keepdims=True)
        logits = self.apply("head", pooled)
        of = np.zeros_like(logits)
        of[0, target] = logits[0, target] if self.rules == "attnlrp" else 1
        of = self.linear("head", pooled, of)
        spread = np.zeros_like(normed)
        spread[: len(pooled)] = of
        if self.model.pool == "mean":
            spread = normed / len(normed) * of / pooled
        of = self.norm("norm", x, normed, spread, centre=True, eps=1e-6)
        for back in reversed(undo):
            of = back(of)
        of = (of * before / (before + self.weights["pos_embed"][0]))[prefix:]
        return self.linear("patch_embed.proj", cut, of).sum(axis=1).reshape(grid, grid)

    def block(self, name: str, x: Array) -> tuple[Array, Any]:
        attn: Any = self.model.get_submodule(f"{name}.attn")
        heads, width, tokens = attn.num_heads, attn.head_dim, len(x)
        differential = hasattr(attn, "sub_norm")
        first = second = out = np.empty(0)
        normed = self.layer_norm(f"{name}.norm1", x)
        q, k, v = (
            part.reshape(tokens, heads, width).swapaxes(0, 1)
            for part in np.split(self.apply(f"{name}.attn.qkv", normed), 3, axis=1)
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        if differential:
            lam = float(attn.lam().detach())
            values = v.reshape(heads // 2, 2, tokens, width).swapaxes(1, 2).reshape(heads // 2, tokens, 2 * width)
            first, second = weights[0::2], -lam * weights[1::2]
            effective = first + second
        else:
            values, effective = v, weights
        read = effective @ values
        if differential:
            sub = read / np.sqrt((read**2).mean(axis=-1, keepdims=True) + 1e-5)
            out = sub * self.weights[f"{name}.attn.sub_norm.weight"]
            joined = (out * (1 - attn.lambda_init)).swapaxes(0, 1).reshape(tokens, -1)
        else:
            joined = read.swapaxes(0, 1).reshape(tokens, -1)
        attended = self.apply(f"{name}.attn.proj", joined)
        middle = x + attended
        normed2 = self.layer_norm(f"{name}.norm2", middle)
        hidden = self.apply(f"{name}.mlp.fc1", normed2)
        active = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        added = self.apply(f"{name}.mlp.fc2", active)

        def back(of: Array) -> Array:
            of_middle, of_mlp = self.sum(middle, added, of)
            of_mlp = self.linear(f"{name}.mlp.fc1", normed2, self.linear(f"{name}.mlp.fc2", active, of_mlp))
            of = of_middle + self.norm(f"{name}.norm2", middle, normed2, of_mlp, centre=True, eps=1e-6)
            of_x, of_attended = self.sum(x, attended, of)
            of_read = (
                self.linear(f"{name}.attn.proj", joined, of_attended).reshape(tokens, len(read), -1).swapaxes(0, 1)
            )
            if differential:
                of_read = self.norm(f"{name}.attn.sub_norm", read, out, of_read, centre=False, eps=1e-5)
            of_map, of_v = self.product(effective, values, of_read)
            self.attention.append(of_map)
            of_weights = of_map
            if differential:
                of_weights = np.stack(self.sum(first, second, of_map), axis=1).reshape(heads, tokens, tokens)
                of_v = of_v.reshape(heads // 2, tokens, 2, width).swapaxes(1, 2).reshape(heads, tokens, width)
            of_scores = self.softmax(scores, weights, of_weights)
            of_q, of_k = self.product(q, k.swapaxes(1, 2), of_scores)
            parts = [part.swapaxes(0, 1).reshape(tokens, -1) for part in (of_q, of_k.swapaxes(1, 2), of_v)]
            of_normed = self.linear(f"{name}.attn.qkv", normed, np.concatenate(parts, axis=1))
            return of_x + self.norm(f"{name}.norm1", x, normed, of_normed, centre=True, eps=1e-6)

        return middle + added, back


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_attnlrp_is_its_rules_layer_by_layer(attention: str, pool: str) -> None:
    model, images = model_of(attention=attention, pool=pool), images_of()
    found = attribute(model, images, "attnlrp", torch.tensor([3, 1]))
    for image, mine, target in zip(images, found, (3, 1), strict=True):
        expected = ByHand(model, image, "attnlrp").run(target)
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_transformer_attribution_is_its_rules_layer_by_layer(attention: str, pool: str) -> None:
    model, images = model_of(attention=attention, pool=pool), images_of()
    found = attribute(model, images, "transformer", 2)
    record = capture(model, images, grad=True, target=2)
    assert record.gradients is not None
    for place, (image, mine) in enumerate(zip(images, found, strict=True)):
        hand = ByHand(model, image, "transformer")
        hand.run(2)
        product = np.eye(len(hand.attention[0][0]))
        for gradient, relevance in zip(record.gradients, reversed(hand.attention), strict=True):
            step = np.maximum(gradient[place].numpy() * relevance, 0).mean(axis=0)
            product = (np.eye(len(step)) + step) @ product
        row = product[0, 1:] if pool == "cls" else product.mean(axis=0)
        np.testing.assert_allclose(mine.numpy().ravel(), row, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("rules", ["attnlrp", "transformer"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_the_rules_change_no_value(attention: str, rules: str) -> None:
    model, images = model_of(attention=attention, pos_embed="sincos-2d+rope-2d"), images_of()
    plain = model(images).detach()
    with Rules(rules):
        torch.testing.assert_close(model(images.clone().requires_grad_()).detach(), plain, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(maps_in_graph(model, images, rules)[1].detach(), plain, rtol=1e-12, atol=1e-12)


def relevance(rules: str, run: Any, *inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """Relevance of the inputs where the outputs have random relevances, and these."""
    live = [each.clone().requires_grad_() for each in inputs]
    with Rules(rules):
        out = run(*live)
    of = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    over = torch.autograd.grad(out, live, of / out.detach())
    return [(x * s).detach() for x, s in zip(live, over, strict=True)], of


NUMBERS = torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
WEIGHT = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
KEEPS = {
    "linear": lambda x: F.linear(x, WEIGHT),
    "gelu": F.gelu,
    "silu": F.silu,
    "layer norm": lambda x: F.layer_norm(x, (32,)),
    "rms norm": lambda x: F.rms_norm(x, (32,), eps=1e-6),
    "mean": lambda x: x.mean(dim=1),
    "scale": lambda x: 3.0 * x,
}


@pytest.mark.parametrize("rules", ["attnlrp", "transformer"])
@pytest.mark.parametrize("name", KEEPS)
def test_operations_of_one_input_keep_the_relevance(name: str, rules: str) -> None:
    (mine,), of = relevance(rules, KEEPS[name], NUMBERS)
    assert float(mine.sum()) == pytest.approx(float(of.sum()), rel=1e-9)


@pytest.mark.parametrize("rules", ["attnlrp", "transformer"])
def test_operations_of_two_inputs_keep_the_relevance(rules: str) -> None:
    for run, halves in (
        (lambda a, b: a + b, False),
        (lambda a, b: a - b, False),
        (lambda a, b: a @ b.mT, True),
        (lambda a, b: a * b, True),
    ):
        (first, second), of = relevance(rules, run, NUMBERS, NUMBERS.flip(0) + 0.5)
        assert float((first + second).sum()) == pytest.approx(float(of.sum()), rel=1e-9)
        if halves:
            assert float(first.sum()) == pytest.approx(float(of.sum()) / 2, rel=1e-9)


@pytest.mark.parametrize("mask", [False, True])
def test_attention_of_torch_is_the_product_of_its_parts(mask: bool) -> None:
    q, k, v = (
        torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(each)) for each in range(3)
    )
    kept = torch.ones(5, 5, dtype=torch.bool).tril() if mask else None
    (_, _, mine), of = relevance(
        "attnlrp", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=kept), q, k, v
    )
    assert float(mine.sum()) == pytest.approx(float(of.sum()) / 2, rel=1e-9)
    with Rules("attnlrp"):
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=kept)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=kept))


def test_a_model_without_attention_and_biases_keeps_the_logit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 16, bias=False), nn.GELU(), nn.LayerNorm(16, bias=False), nn.Linear(16, 1, bias=False)
    ).double()
    model.requires_grad_(False)
    x = NUMBERS[0].clone().requires_grad_()
    with Rules("attnlrp"):
        logits = model(x)
    (over,) = torch.autograd.grad(logits.sum(), x)
    torch.testing.assert_close((x * over).sum(dim=1), logits[:, 0], rtol=1e-9, atol=1e-9)


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="have attnlrp, transformer"):
        Rules("epsilon")
