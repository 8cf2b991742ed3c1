"""The classifier against a float64 loop; its cache against kills, damage and strangers; and the probabilities."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from small_clip import CONFIG, random_everywhere, small_clip, small_model

from diffvit.clip import zero_shot
from diffvit.clip.hub import causal_tower, text_features
from diffvit.clip.load import Clip
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import classify, zero_shot_classifier
from diffvit.errors import ConfigError, InputError
from diffvit.files import cache_folder

LABELS = [f"thing number {number} with {'very ' * (number % 5)}long name" for number in range(10)]
TEMPLATES = Templates("two", ("a photo of a {}.", "a {} in the snow, or another {}"))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return small_clip()


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "_PROMPTS_AT_ONCE", 6)  # three labels a part


def slowly(model: Any, labels: list[str]) -> np.ndarray:
    """Prompt by prompt, all 77 positions, in float64."""
    model = small_model().double()
    model.attn_mask = model.attn_mask.double()
    rows = []
    for label in labels:
        total = np.zeros(32)
        for prompt in (f"a photo of a {label}.", f"a {label} in the snow, or another {label}"):
            with torch.no_grad():
                feature = model.encode_text(open_clip.tokenize([prompt])).numpy()[0]
            total += feature / np.sqrt((feature**2).sum()) / 2
        rows.append(total / np.sqrt((total**2).sum()))
    return np.stack(rows)


def test_rows_are_those_of_a_float64_loop_and_open_clips(clip: Clip) -> None:
    found = zero_shot_classifier(clip, LABELS, TEMPLATES)
    assert np.abs(found.weights.numpy() - slowly(clip.model, LABELS)).max() < 1e-6
    assert (found.weights.shape, found.weights.dtype) == ((10, 32), torch.float32)
    assert (found.labels, found.computed, found.twins) == (tuple(LABELS), 10, ())
    theirs: Any = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, LABELS, [text.replace("{}", "{0}") for text in TEMPLATES.texts]
    )
    assert (found.weights - theirs.T).abs().max() < 1e-6
    articles = zero_shot_classifier(clip, [f"a {label}" for label in LABELS], TEMPLATES).weights
    torch.testing.assert_close(articles, found.weights)


def parts() -> list[Path]:
    return sorted(cache_folder().rglob("*.rows"))


def test_an_interrupted_call_goes_on_where_it_was(clip: Clip) -> None:
    whole = zero_shot_classifier(clip, LABELS, TEMPLATES, use_cache=False)
    assert not parts()
    reports: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        reports.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zero_shot_classifier(clip, LABELS, TEMPLATES, progress=killed)
    assert reports == [(0, 10), (3, 10), (6, 10)]
    reports.clear()
    found = zero_shot_classifier(clip, LABELS, TEMPLATES, progress=lambda *at: reports.append(at))
    assert reports == [(6, 10), (9, 10), (10, 10)]
    again = zero_shot_classifier(clip, LABELS, TEMPLATES)
    assert (whole.computed, found.computed, again.computed) == (10, 4, 0)
    assert torch.equal(found.weights, whole.weights)
    assert torch.equal(again.weights, whole.weights)


def test_a_kill_inside_a_save_leaves_no_half_part(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            zero_shot_classifier(clip, LABELS, TEMPLATES)
    assert not parts()
    assert zero_shot_classifier(clip, LABELS, TEMPLATES).computed == 10


def test_damaged_parts_are_computed_again(clip: Clip) -> None:
    whole = zero_shot_classifier(clip, LABELS, TEMPLATES)
    first, second, third, _ = parts()
    damages = {
        "a flipped bit": lambda old: old[:50] + bytes([old[50] ^ 1]) + old[51:],
        "cut": lambda old: old[:-4],
        "empty": lambda old: b"",
        "longer": lambda old: old + bytes(12),
        "of another place": lambda old: first.read_bytes(),
    }
    for name, damage in damages.items():
        second.write_bytes(damage(second.read_bytes()))
        found = zero_shot_classifier(clip, LABELS, TEMPLATES)
        assert (found.computed, torch.equal(found.weights, whole.weights)) == (3, True), name
    third.unlink()
    assert zero_shot_classifier(clip, LABELS, TEMPLATES).computed == 3


def test_other_labels_templates_weights_or_names_are_computed(clip: Clip) -> None:
    other = small_model()
    with torch.no_grad():
        other.text_projection[0, 0] += 1
    changes: list[tuple[Clip, list[str], Templates]] = [
        (clip, LABELS, TEMPLATES),
        (clip, LABELS[::-1], TEMPLATES),
        (clip, LABELS, Templates("two", TEMPLATES.texts[::-1])),
        (small_clip(other), LABELS, TEMPLATES),
        (replace(clip, name="another"), LABELS, TEMPLATES),
    ]
    found = [zero_shot_classifier(*each) for each in changes]
    assert [each.computed for each in found] == [10] * 5
    assert zero_shot_classifier(clip, LABELS, Templates("my.txt", TEMPLATES.texts)).computed == 0


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(clip: Clip) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "clip").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="the classifier is not cached") as warned:
        found = zero_shot_classifier(clip, LABELS, TEMPLATES)
    assert (found.computed, len(warned)) == (10, 1)


def test_equal_labels_are_kept_and_flagged(clip: Clip) -> None:
    found = zero_shot_classifier(clip, ["a", "missile", "b", "c", "missile"], TEMPLATES)
    assert found.twins == ((1, 4),)
    assert (found.weights[1] - found.weights[4]).abs().max() < 1e-6


def test_text_features_that_are_not_finite_make_no_classifier() -> None:
    broken = small_model()
    broken.ln_final.weight.data[0] = float("inf")
    with pytest.raises(InputError, match="text features that are not finite"):
        zero_shot_classifier(small_clip(broken), ["a"], TEMPLATES)


def test_probabilities_are_a_softmax_of_scaled_cosines(clip: Clip) -> None:
    classifier = zero_shot_classifier(clip, LABELS, TEMPLATES)
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model: Any = clip.model
    with torch.no_grad():
        features = model.encode_image(images).double()
    cosines = features / features.norm(dim=1, keepdim=True) @ classifier.weights.double().T
    expected = (100 / 7 * cosines).softmax(dim=1)  # the scale that CLIPs begin with is 1 / 0.07
    found = classify(clip, classifier, images)
    assert (found - expected).abs().max() < 1e-6
    assert (found.dtype, found.shape) == (torch.float32, (5, 10))


LONG = " ".join(["word"] * 80)


@pytest.mark.parametrize(
    "labels",
    [["cat", f"{LONG} one", f"{LONG} two"], ["dog", "Cat", "cat"], ["the cat", "a cat"], ["red  car", "red car"]],
)
def test_labels_that_the_model_cannot_tell_apart_are_refused(clip: Clip, labels: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        zero_shot_classifier(clip, labels, TEMPLATES, use_cache=False)
    assert all(repr(" ".join(label.split())[:60]) in str(caught.value) for label in labels[-2:])


def test_labels_that_are_cut_are_named(clip: Clip) -> None:
    room = 77 - 2 - 5  # start and end; a, photo, of, a and the full stop
    one = Templates("one", ("a photo of a {}.", "a {}"))
    whole, longer = (" ".join(["word"] * count) for count in (room, room + 1))
    assert zero_shot_classifier(clip, ["cat", whole], one, use_cache=False).cut == ()
    assert zero_shot_classifier(clip, ["cat", longer], one, use_cache=False).cut == (longer,)


# Text features without the padding

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


MODELS = {"openai": small_model, "custom": lambda: custom({})}
WHOLE = {
    "end of text by its number": lambda: custom({"pool_type": "eos", "eos_id": 49407}),
    "with a bias": lambda: custom({"proj_bias": True}),
    "without projection": lambda: custom({"proj_type": "none"}),
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
    if name == "openai":  # in double precision nothing is left of the difference
        model.double().attn_mask = model.attn_mask.double()
        with torch.no_grad():
            assert (text_features(model, tokens) - model.encode_text(tokens)).abs().max() < 1e-13


def test_a_batch_is_as_long_as_its_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small_model(), []
    model.token_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    monkeypatch.setattr("diffvit.clip.hub._TOKENS_AT_ONCE", 100)
    text_features(model, open_clip.tokenize(TEXTS))
    assert seen[0][1] < 10
    assert seen[-1] == (1, 77)
    assert sum(count for count, _ in seen) == len(TEXTS)
    assert all(count * length <= 100 for count, length in seen)
