from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.reporting.arms import arms, ranking, why_apart
from diffvit.reporting.rows import merge, read, read_run, write
from diffvit.reporting.tables import class_table
from diffvit.reporting.texts import statements

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
    predicted = sum(row[0] for row in grouped[0].confusion)
    assert grouped[0].class_precisions[0] == pytest.approx(grouped[0].confusion[0][0] / predicted)
    table = class_table(grouped)
    assert table is not None
    assert table.columns == ["Class", "ViT", "ViT, precision", "Diff-ViT", "Diff-ViT, precision"]
    assert table.rows[0][2] == f"{100 * grouped[0].confusion[0][0] / predicted:.1f}%"


def test_arms_of_other_classes_have_no_place_in_a_table_of_classes(make_run: MakeRun) -> None:
    grouped = arms([read_run(run) for run in (make_run("a"), make_run("b", attention="differential"))])
    for record in grouped[1].records:
        record.classes[:] = [f"shape {name}" for name in record.classes]
    table = class_table(grouped)
    assert table is not None
    assert table.columns == ["Class", "ViT", "ViT, precision"]


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
    runs = _seeds(make_run, "softmax", [0.60, 0.61, 0.62]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    said = _said(runs)
    assert said.startswith("Diff-ViT beats ViT by 25.17 points of test accuracy (95% interval paired over 3 seeds ")


def test_an_interval_over_zero_names_none(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.80, 0.81, 0.82]) + _seeds(make_run, "differential", [0.79, 0.83, 0.82])
    said = _said(runs)
    assert said.startswith("No winner between ViT and Diff-ViT")
    assert "beats" not in said


def test_a_gap_that_is_the_same_over_every_seed_is_no_certainty_on_few_images(make_run: MakeRun) -> None:
    """Six runs on 100 images, each one image apart: the sampling of the images alone allows ten points either way."""
    runs = _seeds(make_run, "softmax", [0.16, 0.19, 0.16]) + _seeds(make_run, "differential", [0.15, 0.18, 0.15])
    for run in runs:
        environment = json.loads((run / "environment.json").read_text())
        environment["data"]["test"] = 100
        (run / "environment.json").write_text(json.dumps(environment))
    grouped = arms([read_run(run) for run in runs])
    found = ranking([arm.records for arm in grouped])
    assert found is not None
    interval = found.between(0, 1)
    assert interval.estimate == pytest.approx(0.01)
    assert interval.high - interval.low > 2 * 1.96 * math.sqrt((0.17 * 0.83 + 0.16 * 0.84) / 100)
    assert "beats" not in "".join(statements(grouped))


def test_two_seeds_name_no_winner_however_large_the_gap(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.50, 0.50]) + _seeds(make_run, "differential", [0.90, 0.90])
    said = _said(runs)
    assert "2 shared seeds: no winner is named" in said
    assert "beats" not in said


def test_only_shared_seeds_are_pairs(make_run: MakeRun) -> None:
    ours = [make_run(f"s{seed}", seed=seed) for seed in (0, 1, 2)]
    theirs = [make_run(f"d{seed}", attention="differential", seed=seed, accuracy=0.9) for seed in (2, 3, 4)]
    assert "one seed: no winner is named" in _said(ours + theirs)


def test_a_gap_is_that_of_the_shared_seeds_alone(make_run: MakeRun) -> None:
    """Arms of four and two seeds: equal on the two they share, 10 points apart over all."""
    runs = _seeds(make_run, "softmax", [0.8, 0.8, 0.6, 0.6]) + _seeds(make_run, "differential", [0.8, 0.8])
    assert _said(runs) == "ViT minus Diff-ViT: +0.00 points of test accuracy; 2 shared seeds: no winner is named."
    apart = [*runs[:2], *(make_run(f"d{seed}", attention="differential", seed=seed, accuracy=0.9) for seed in (7, 8))]
    assert "-10.00 points of test accuracy; no shared seed, so not paired" in _said(apart)


def test_an_arm_of_few_seeds_keeps_no_others_from_being_ranked(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.60, 0.61, 0.62]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    runs.insert(0, make_run("e", accuracy=0.7, settings={"ema": 0.9}))
    said = statements(arms([read_run(run) for run in runs]))
    assert sum("no winner is named" in text for text in said) == 2
    assert sum("beats" in text for text in said) == 1


def test_runs_with_other_kernels_are_no_pair(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.60, 0.61, 0.62]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    for run in runs[:3]:
        environment = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps(environment | {"kernels": "native"}))
    assert "no shared seed, so not paired" in _said(runs)


def test_one_seed_speaks_of_the_models_only_where_predictions_were_kept(make_run: MakeRun) -> None:
    pair = [make_run("a", accuracy=0.8), make_run("b", attention="differential", accuracy=0.81)]
    said = _said(pair)
    assert said.startswith("ViT minus Diff-ViT: -1.00 points of test accuracy; one seed: no winner is named.")
    assert "same 200 test images" in said
    assert "not the variation between training runs" in said
    (pair[1] / "evaluation.json").unlink()
    assert "test images" not in _said(pair)


def test_runs_that_know_their_predictions_are_paired_by_image(make_run: MakeRun, tmp_path: Path) -> None:
    runs = _seeds(make_run, "softmax", [0.60, 0.61, 0.62]) + _seeds(make_run, "differential", [0.85, 0.86, 0.875])
    said = _said(runs)
    assert "paired over 3 seeds and the test images" in said
    write(tmp_path, [read_run(run) for run in runs])
    assert "\n".join(statements(arms(read(tmp_path)))) == said
    records = read(tmp_path)
    alone = [replace(record, correct=None) for record in records]
    assert records[0].correct is not None
    of_others = replace(records[0], correct=replace(records[0].correct, fingerprint="other"))
    unpaired = ranking([alone[:3], alone[3:]])
    for first in (alone[0], of_others):  # one run that does not say, or says it of other test images
        assert ranking([[first, *records[1:3]], records[3:]]) == unpaired


def test_more_arms_widen_the_intervals(make_run: MakeRun) -> None:
    runs = _seeds(make_run, "softmax", [0.60, 0.61, 0.62]) + _seeds(make_run, "differential", [0.85, 0.86, 0.88])
    pair = ranking([arm.records for arm in arms([read_run(run) for run in runs])])
    # Without a residual in the third arm, which is the mean of the other two, the pooled variance stays as it was.
    between = [0.725, 0.735, 0.75]
    runs += [make_run(f"e{s}", seed=s, accuracy=a, settings={"ema": 0.9}) for s, a in enumerate(between)]
    three = ranking([arm.records for arm in arms([read_run(run) for run in runs])])
    assert pair is not None
    assert three is not None
    assert three.between(0, 1).estimate == pytest.approx(pair.between(0, 1).estimate)
    assert three.between(0, 1).high > pair.between(0, 1).high
    assert three.between(1, 0) == -three.between(0, 1)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("data", {"name": name}) for name in ("shapes", "CIFAR-10", "CIFAR-10 (unknown copy)")),
        *(("data", {"fingerprint": "ff"}), ("precision", "fp32"), ("hardware", "another")),
    ],
)
def test_runs_of_other_data_precision_or_hardware_are_never_ranked(
    column: str, value: object, make_run: MakeRun
) -> None:
    """Each of two conditions has a winner of its own; nothing is said across them."""
    runs = []
    for place, gap in (("here", 0.3), ("there", -0.3)):
        for seed in range(3):
            for attention, accuracy in (("softmax", 0.6), ("differential", 0.6 + gap)):
                run = make_run(f"{place}-{attention}-{seed}", attention=attention, seed=seed, accuracy=accuracy)
                if place == "there":
                    environment = json.loads((run / "environment.json").read_text())
                    old = environment[column]
                    environment[column] = old | value if isinstance(value, dict) else value
                    (run / "environment.json").write_text(json.dumps(environment))
                    result = json.loads((run / "result.json").read_text())
                    result |= {"data": environment["data"]["name"], "precision": environment["precision"]}
                    (run / "result.json").write_text(json.dumps(result))
                runs.append(run)
    records = [read_run(run) for run in runs]
    grouped = arms(records)
    assert [sorted(arm.accuracies) for arm in grouped] == [[0, 1, 2]] * 4
    said = statements(grouped)
    assert why_apart(records) == said[0]
    assert len(said) == 3  # that they are apart, and a winner in each
    assert sum("beats" in text for text in said[1:]) == 2
    if column == "precision" or value == {"fingerprint": "ff"}:
        assert len(merge(records[:6], records[6:])) == 12  # none takes another's place
