"""Cutting the padding off changes no text feature."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from small_clip import CONFIG, random_everywhere, small_model

from diffvit.clip.text_tower import causal_tower, text_features

TEXTS = [
    "",
    "a photo of a cat",
    "word " * 500,
    "x",
    "a photo of a very small Ünïcödé thing, with commas",
    "an <end_of_text> in the middle",
    *[f"number {number} of {'many ' * (number % 9)}" for number in range(60)],
]


def custom(text: dict[str, Any]) -> Any:
    config = copy.deepcopy(CONFIG)
    config["text_cfg"] |= text
    torch.manual_seed(0)
    return random_everywhere(open_clip.CustomTextCLIP(**config))


MODELS = {
    "openai": small_model,
    "custom": lambda: custom({}),
    "end of text by its number": lambda: custom({"pool_type": "eos", "eos_id": 49407}),
    "with a bias": lambda: custom({"proj_bias": True}),
    "without projection": lambda: custom({"proj_type": "none"}),
}
WHOLE = {
    "not causal": lambda: custom({"no_causal_mask": True}),
    "pooled at the last": lambda: custom({"pool_type": "last"}),
    "pooled at a class token": lambda: custom({"embed_cls": True, "pool_type": "argmax"}),
}


@pytest.mark.parametrize("name", [*MODELS, *WHOLE])
def test_features_are_encode_texts(name: str) -> None:
    model = {**MODELS, **WHOLE}[name]()
    assert (causal_tower(model) is None) == (name in WHOLE)
    tokens = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(tokens)
    found = text_features(model, tokens)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-6
    unit = torch.nn.functional.normalize
    assert (unit(found, dim=-1) - unit(expected, dim=-1)).abs().max() < 1e-6


def test_in_double_precision_nothing_is_left_of_the_difference() -> None:
    model = small_model().double()
    model.attn_mask = model.attn_mask.double()
    tokens = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        assert (text_features(model, tokens) - model.encode_text(tokens)).abs().max() < 1e-13


def test_a_batch_is_as_long_as_its_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small_model(), []
    model.token_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    monkeypatch.setattr("diffvit.clip.text_tower._TOKENS_AT_ONCE", 100)
    text_features(model, open_clip.tokenize(TEXTS))
    assert seen[0][1] < 10
    assert seen[-1] == (1, 77)
    assert sum(count for count, _ in seen) == len(TEXTS)
    assert all(count * length <= 100 for count, length in seen)
