from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diffvit.reporting.arms import arms, cannot_rank, statements
from diffvit.reporting.rows import read_run

MakeRun = Callable[..., Path]


def _said(runs: Sequence[Path]) -> str:
    return "\n".join(statements(arms([read_run(run) for run in runs])))


def _seeds(make_run: MakeRun, attention: str, accuracies: Sequence[float]) -> list[Path]:
    return [
        make_run(f"{attention}{seed}", attention=attention, seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_runs_that_differ_in_the_seed_are_one_arm(make_run: MakeRun) -> None:
    runs = [*_seeds(make_run, "softmax", [0.8, 0.81]), make_run("d", attention="differential")]
    grouped = arms([read_run(run) for run in runs])
    assert [(arm.label, sorted(arm.accuracies)) for arm in grouped] == [("ViT", [0, 1]), ("Diff-ViT", [0])]
    assert sum(map(sum, grouped[0].confusion)) == 400
    assert grouped[0].class_accuracies[0] == pytest.approx(grouped[0].confusion[0][0] / 40)


def test_a_run_made_twice_is_no_second_seed(make_run: MakeRun) -> None:
    grouped = arms([read_run(run) for run in (make_run("a"), make_run("again"), make_run("b", seed=1))])
    assert [(arm.label, sorted(arm.accuracies)) for arm in grouped] == [("a", [0, 1]), ("again", [0])]


def test_labels_name_what_tells_the_arms_apart(make_run: MakeRun) -> None:
    model = {"embed_dim": 32, "depth": 3, "num_heads": 4}
    runs = [make_run("a"), make_run("b", settings={"model": model | {"patch_size": 8}})]
    assert [arm.label for arm in arms([read_run(run) for run in runs])] == ["ViT, patch_size 4", "ViT, patch_size 8"]
    many = {"batch_size": 64, "ema": 0.9, "label_smoothing": 0.1}
    runs = [make_run("c"), make_run("d", settings=many)]
    assert [arm.label for arm in arms([read_run(run) for run in runs])] == ["c", "d"]


def test_three_seeds_and_an_interval_name_a_winner(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.80, 0.81, 0.82]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    said = _said(runs)
    assert said.startswith("Diff-ViT beats ViT by 5.17 points of test accuracy (95% paired interval over 3 seeds +4.4")


def test_an_interval_over_zero_names_none(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.80, 0.81, 0.82]) + _seeds(make_run, "differential", [0.79, 0.83, 0.82])
    said = _said(runs)
    assert said.startswith("No winner between ViT and Diff-ViT")
    assert "beats" not in said


def test_two_seeds_name_no_winner_however_large_the_gap(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.50, 0.50]) + _seeds(make_run, "differential", [0.90, 0.90])
    said = _said(runs)
    assert "2 shared seeds: no winner is named" in said
    assert "beats" not in said


def test_only_shared_seeds_are_pairs(make_run: MakeRun) -> None:
    ours = [make_run(f"s{seed}", seed=seed) for seed in (0, 1, 2)]
    theirs = [make_run(f"d{seed}", attention="differential", seed=seed, accuracy=0.9) for seed in (2, 3, 4)]
    assert "one seed: no winner is named" in _said(ours + theirs)


def test_one_seed_speaks_of_the_models_only_where_predictions_were_kept(make_run: MakeRun) -> None:
    pair = [make_run("a", accuracy=0.8), make_run("b", attention="differential", accuracy=0.81)]
    said = _said(pair)
    assert said.startswith("ViT minus Diff-ViT: -1.00 points of test accuracy; one seed: no winner is named.")
    assert "same 200 test images" in said
    assert "not the luck of training" in said
    (pair[1] / "evaluation.json").unlink()
    assert "test images" not in _said(pair)


def test_more_comparisons_widen_the_interval(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.80, 0.81, 0.82]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    runs += [make_run(f"e{seed}", seed=seed, accuracy=0.7, settings={"ema": 0.9}) for seed in range(3)]
    said = _said(runs)
    assert "98.3% paired interval over 3 seeds" in said
    assert "widened for 3 comparisons" in said


def test_other_data_is_not_ranked(make_run: MakeRun) -> None:
    pair = [make_run("a"), make_run("b", attention="differential", data="shapes (clutter 0.3, noise 0.1)")]
    names = "CIFAR-10 (JPEG); shapes (clutter 0.3, noise 0.1)"
    assert _said(pair) == f"These runs were scored on different data ({names}): they are not ranked."


def test_the_same_name_with_other_images_is_not_ranked(make_run: MakeRun) -> None:
    pair = [make_run("a"), make_run("b", attention="differential")]
    environment = json.loads((pair[1] / "environment.json").read_text())
    environment["data"]["fingerprint"] = "ff"
    (pair[1] / "environment.json").write_text(json.dumps(environment))
    assert "its images differ" in (cannot_rank([read_run(run) for run in pair]) or "")
