"""Attacks against what closed forms say of a linear classifier, and the figures of a packaged model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffvit.cli.main import run as command
from diffvit.data.shifts import CORRUPTIONS
from diffvit.errors import ConfigError
from diffvit.experiments.runner import SCORES, numbers_in
from diffvit.registry import function_of
from diffvit.training.loop import train
from diffvit.training.robustness import ATTACKS, EPSILONS, robustness, survivors
from diffvit.training.run_dir import RunDir
from tests.training.small import small

SIDE = 4


def linear(classes: int) -> tuple[Tensor, Tensor]:
    """Weights of a linear classifier, and images well inside of 0 .. 1."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(classes, 3 * SIDE * SIDE, generator=generator)
    return weights, 0.3 + 0.4 * torch.rand(400, 3, SIDE, SIDE, generator=generator)


def logits(weights: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(1) - 0.5) @ weights.T


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("steps", [10, 30])
def test_of_two_classes_those_survive_whose_margin_is_larger_than_epsilon_times_the_weights(
    steps: int, margin: bool
) -> None:
    weights, images = linear(2)
    gap = weights[0] - weights[1]
    margins, labels = ((images.flatten(1) - 0.5) @ gap).abs(), logits(weights, images).argmax(1)
    for epsilon in (0.002, 0.01, 0.03):
        bound = epsilon * gap.abs().sum()
        clear = (margins / bound - 1).abs() > 1e-3  # the rest turns on rounding
        found = survivors(partial(logits, weights), images, labels, epsilon, steps=steps, margin=margin, seed=1)
        assert 20 < int(found.sum()) < 400
        assert torch.equal(found[clear], (margins > bound)[clear])


def test_every_point_is_near_the_image_and_in_range_and_the_margin_attacks_a_sure_classifier() -> None:
    weights, images = linear(5)
    images[:, :, 0] = 0.0  # at the border
    labels = logits(weights, images).argmax(1)
    seen: list[Tensor] = []

    def sure(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return 300 * logits(weights, x)  # softmax is 1 to the last bit: cross-entropy has no gradient

    def kept(margin: bool) -> int:
        return int(survivors(sure, images[:50], labels[:50], 0.03, steps=10, margin=margin).sum())

    assert kept(margin=True) < kept(margin=False)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in seen)
    whole = [x for x in seen if len(x) == 50]
    assert max(float((x - images[:50]).abs().max()) for x in whole) <= 0.03 + 1e-6


def test_an_image_that_is_wrong_already_does_not_survive() -> None:
    weights, images = linear(3)
    wrong = (logits(weights, images).argmax(1) + 1) % 3
    found = survivors(partial(logits, weights), images, wrong, 1e-6, steps=1)
    assert not found.any()


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of few steps."""
    attacks = {"pgd-10": {"steps": 3}, "margin-30": {"steps": 4, "margin": True}}
    monkeypatch.setattr("diffvit.training.robustness.ATTACKS", attacks)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", ["shapes-vit", "shapes-diffvit"])
def test_a_packaged_model_loses_with_the_severity_and_with_epsilon(name: str) -> None:
    parts: list[tuple[int, int]] = []
    found = robustness(name, images=80, device="cpu", precision="fp32", progress=lambda *at: parts.append(at))
    assert parts == [(number, 28) for number in range(1, 29)]
    assert found["images"] == 80
    assert [row["corruption"] for row in found["corruptions"]] == [kind for kind in CORRUPTIONS for _ in range(5)]
    for kind in CORRUPTIONS:
        accuracies = [row["accuracy"] for row in found["corruptions"] if row["corruption"] == kind]
        assert found[kind] == pytest.approx(sum(accuracies) / 5)
    assert found["corruption_error"] == pytest.approx(1 - sum(found[kind] for kind in CORRUPTIONS) / 4)
    for attack in ATTACKS:
        by_epsilon = [found[f"{attack} {epsilon:g}/255"] for epsilon in EPSILONS]
        assert by_epsilon == sorted(by_epsilon, reverse=True)
        assert by_epsilon[-1] < found["accuracy"]


@pytest.mark.usefixtures("_short")
def test_the_command_prints_what_it_measures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffvit.training.robustness.EPSILONS", (2.0,))
    monkeypatch.setattr("diffvit.training.robustness.CORRUPTIONS", ("noise",))
    assert command(["evaluate", "shapes-vit", "--robustness", "--json", "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["robustness"]
    assert found["images"] == 1000
    for row in found["corruptions"]:
        assert any(row["corruption"] in line and f"{row['accuracy']:.2%}" in line for line in lines)
    assert any("pgd-10" in line and f"{found['pgd-10 2/255']:.2%}" in line for line in lines)


@pytest.mark.usefixtures("_short")
def test_a_study_may_measure_it_of_its_runs(tmp_path: Path) -> None:
    train(small(), out=tmp_path)
    scores = function_of(SCORES["robustness"])(RunDir.open(tmp_path))
    numbers = numbers_in(scores)
    assert all(0 <= value <= 1 for value in numbers.values())
    assert {"accuracy", "corruption_error", "pgd-10 1/255"} <= numbers.keys()
    assert set(scores) - set(numbers) == {"corruptions", "attacks"}


@pytest.mark.usefixtures("_short")
def test_images_larger_than_a_shift_takes_are_measured_at_their_own_size(tmp_path: Path) -> None:
    run = train(small(model={"image_size": 288, "patch_size": 96}), out=tmp_path)
    found = robustness(run, images=10)
    assert len(found["corruptions"]) == 20


def test_what_cannot_be_measured_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"images: must be at least 1 \(found 0\)"):
        robustness("shapes-vit", images=0)
    assert command(["evaluate", "shapes-vit", "--robustness", "--split", "train"]) == 2
    assert "--robustness: is measured on the run's own test images" in capsys.readouterr().err
