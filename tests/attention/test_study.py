from __future__ import annotations

import dataclasses
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diffvit.attention import study
from diffvit.config import parse, to_dict
from diffvit.errors import Interrupted
from diffvit.models.vit import VisionTransformer
from diffvit.reporting import rows
from diffvit.reporting.attention_rows import DIFFERENTIAL, SOFTMAX, WIDE, Study
from diffvit.reporting.csv_files import read_csv
from diffvit.training.loop import train
from diffvit.training.progress import QuietProgress
from tools import attention as report

TINY: dict[str, Any] = {
    "data": "shapes",
    "validation_size": 0,
    "epochs": 1,
    "batch_size": 20,
    "threads": 1,
    "precision": "fp32",
    "model": {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
    "shapes": {"size": 16, "train": 40, "test": 20},
}


def trial(arm: str, seed: int, clutter: float) -> study.Trial:
    model = {**TINY["model"], "attention": "differential" if arm == DIFFERENTIAL else "softmax"}
    config = parse({**TINY, "model": model, "seed": seed, "shapes": {**TINY["shapes"], "clutter": clutter}})
    return study.Trial(arm, f"{arm}-{seed}-{clutter}", config, clutter, 10, 4)


def test_the_study_is_every_arm_at_every_clutter_with_three_seeds_and_cifar10() -> None:
    wanted = list(study.trials())
    counts = Counter((each.arm, each.config.data) for each in wanted)
    assert counts == {
        **{(arm, "shapes"): 4 * 3 for arm in (SOFTMAX, DIFFERENTIAL, WIDE)},
        **{(arm, "cifar10"): 3 for arm in (SOFTMAX, DIFFERENTIAL)},
    }
    assert len({each.key for each in wanted}) == len({each.name for each in wanted}) == len(wanted)
    assert {each.config.seed for each in wanted} == {0, 1, 2}
    for each in wanted:
        assert each.config.validation_size == 0
        assert each.config.shapes.clutter == (each.clutter if each.clutter is not None else 0.3)


def test_arms_are_of_equal_size() -> None:
    sizes = {}
    for each in study.trials([0]):
        if each.clutter == 0.3:
            settings = {key: value for key, value in to_dict(each.config.model).items() if key != "preset"}
            model = VisionTransformer(**settings)
            sizes[each.arm] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[SOFTMAX] == sizes[WIDE]
    assert abs(sizes[DIFFERENTIAL] / sizes[SOFTMAX] - 1) < 0.002


def test_a_small_study_is_trained_scored_reported_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    wanted = [trial(arm, seed, clutter) for seed in (0, 1) for arm in (SOFTMAX, DIFFERENTIAL) for clutter in (0.0, 0.5)]
    told: list[str] = []
    out = tmp_path / "report"
    study.run(wanted[:3], runs=tmp_path / "runs", out=out, announce=told.append)
    assert len(told) == 3
    study.run(wanted, runs=tmp_path / "runs", out=out, announce=told.append)
    assert len(told) == len(wanted)  # the first three were not done again
    study.run(wanted, runs=tmp_path / "none", out=out, announce=told.append)
    assert len(told) == len(wanted)
    assert str(report.of_folder(out)["report.md"]).startswith("# Does differential attention cancel noise?")
    found = Study(rows.read(out), read_csv(out / "scores.csv"), read_csv(out / "removal.csv"))
    assert found.clutter == [0.0, 0.5]
    assert found.last == "layer 1"
    for arm in (SOFTMAX, DIFFERENTIAL):
        for metric in ("mass", "deletion"):
            assert len(found.values(arm, "rollout", metric)) == 4
        assert len(found.accuracies(arm)) == 4
    assert set(found.values(SOFTMAX, "rollout, A1 alone", "mass")) == set()
    with_first = found.values(DIFFERENTIAL, "rollout, A1 alone", "mass")
    assert set(with_first) == {(seed, clutter) for seed in (0, 1) for clutter in (0.0, 0.5)}


def test_an_interrupted_training_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dataclasses.replace(trial(SOFTMAX, 0, 0.0), config=parse({**TINY, "epochs": 2, "checkpoint_every": 1}))

    class Interrupting(QuietProgress):
        def epoch(self, row: Mapping[str, Any]) -> None:
            if row["epoch"] == 1:
                signal.raise_signal(signal.SIGINT)

    def stopped(*args: Any, **more: Any) -> Any:
        return train(*args, **more, progress=Interrupting())

    monkeypatch.setattr(study, "train", stopped)
    with pytest.raises(Interrupted):
        study.run([wanted], runs=tmp_path / "runs", out=tmp_path / "report", announce=lambda _: None)
    monkeypatch.setattr(study, "train", train)
    study.run([wanted], runs=tmp_path / "runs", out=tmp_path / "report", announce=lambda _: None)
    assert len(rows.read(tmp_path / "report")) == 1


def test_faults_end_as_one_line_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(study, "trials", lambda: iter([trial(SOFTMAX, 0, 0.0)]))
    assert study.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "file")]) == 4
    assert capsys.readouterr().err.count("\n") == 1
