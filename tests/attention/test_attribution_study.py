"""The study ``attribution``: arms of equal size, and what is scored of a run becomes rows and a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.attention import METHODS, attribute, metrics
from diffvit.attention.attribute import randomisation, randomised
from diffvit.attention.inputs import labelled_images, load_model
from diffvit.attention.scores import attribution_scores
from diffvit.cli.main import run
from diffvit.errors import InputError
from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.runner import Runner
from diffvit.experiments.study import STUDIES, Study, cells_of, load_study
from diffvit.models.vit import VisionTransformer
from diffvit.reporting import rows
from diffvit.training.run_dir import RunDir
from tools.attribution import DIFFERENTIAL, ON_CIFAR, VIT, WIDE, read_study

STUDY = STUDIES["attribution"]
SMALL = """
question: What do they look at?
attentions: []
score: attribution
report: false
seeds: 2
base:
  data: shapes-hard
  epochs: 1
  whiten: false
  batch_size: 20
  validation_size: 0
  precision: fp32
  augment: {flip: false, crop: 0}
  model: {image_size: 16, patch_size: 4, embed_dim: 8, depth: 2, num_heads: 2}
  shapes: {size: 16, train: 40, test: 20, clutter: 0.1}
arms:
  ViT: {}
  Diff-ViT: {model: {attention: differential}}
"""
SMALLER = {"_ATTRIBUTED": 6, "_TAKEN_APART": 4, "_SANITY": 3, "HARD_CLUTTER": (0.1, 0.4)}


def test_its_arms_are_of_equal_size_and_two_are_on_cifar10() -> None:
    cells = cells_of(STUDY, "short")
    wanted = {VIT: "shapes-hard", DIFFERENTIAL: "shapes-hard", WIDE: "shapes-hard"}
    wanted |= {f"{arm}{ON_CIFAR}": "cifar10" for arm in (VIT, DIFFERENTIAL)}
    assert {cell.arm: cell.config.data for cell in cells} == wanted
    assert len({cell.key for cell in cells}) == len(cells) == 5 * 5
    assert {cell.config.data for cell in cells_of(STUDY, "smoke")} == {"shapes-hard"}
    sizes = {}
    for cell in cells[:5]:
        model = VisionTransformer(**cell.config.model.model_dump(exclude={"preset"}))
        sizes[cell.arm] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[VIT] == sizes[WIDE]
    for data in ("", ON_CIFAR):
        assert abs(sizes[DIFFERENTIAL + data] / sizes[VIT + data] - 1) < 0.002


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Runner]:
    """A study of two arms and two seeds, and a worker of it."""
    for name, value in SMALLER.items():
        monkeypatch.setattr(f"diffvit.attention.scores.{name}", value)
    (tmp_path / "maps.yaml").write_text(SMALL)
    study = load_study(tmp_path / "maps.yaml")
    cells = cells_of(study, "short")
    folders = {cell.name: tmp_path / "runs" / "short" / f"{cell.key[0]}-s{cell.key[1]}" for cell in cells}
    return study, Runner(cells, folders, {"device": "cpu", "threads": 1}, study.score)


def test_a_small_study_is_trained_scored_and_reported_and_goes_on_where_it_stopped(
    small: tuple[Study, Runner], tmp_path: Path
) -> None:
    study, runner = small
    with pytest.raises(InputError, match="has no finished run and no committed row"):
        gathered(study, tmp_path / "runs", tmp_path)
    assert not (tmp_path / "maps").exists()
    first = replace(runner, cells=runner.cells[:3])
    assert first.work() == 3
    accuracies = [RunDir(runner.folders[cell.name]).result["test_accuracy"] for cell in first.cells]
    assert list(first.state().done.values()) == accuracies
    out = write_report(gathered(study, tmp_path / "runs", tmp_path), tmp_path).parent
    assert [record.key[:2] for record in rows.read(out)] == [cell.key for cell in first.cells]
    before = (out / "methods.csv").read_bytes()
    assert runner.work() == 1
    write_report(gathered(study, tmp_path / "runs", tmp_path), tmp_path)
    after = (out / "methods.csv").read_bytes()
    assert after.startswith(before)
    write_report(gathered(study, tmp_path / "none", tmp_path), tmp_path)
    assert (out / "methods.csv").read_bytes() == after
    found = read_study(out)
    assert (found.arms, found.clutter) == (["ViT", "Diff-ViT"], [0.1, 0.4])
    for metric in ("pointing", "road"):
        assert set(found.values("Diff-ViT", "attnlrp", metric)) == {0, 1}
    assert found.agreement("ViT").shape == (len(METHODS), len(METHODS))


def test_attribution_is_scored_on_masks_by_removal_with_random_weights_and_against_each_other(
    small: tuple[Study, Runner],
) -> None:
    _, runner = small
    run = runner.train(runner.cells[1])
    found = attribution_scores(run)
    model, maps = load_model(run.path), len(METHODS)
    images = labelled_images(model).select(range(6))
    of = Counter((row["weights"], row["clutter"]) for row in found["methods"])
    assert of == {
        **dict.fromkeys((("trained", 0.1), ("trained", 0.4)), maps + 10),
        ("random", 0.1): maps,
    }
    rows = {(row["weights"], row["clutter"], row["map"]): row for row in found["methods"]}
    x = model.normalised(images.pixels)
    classes = model.model(x).argmax(dim=1)
    assert images.masks is not None
    cover = metrics.coverage(images.masks, (4, 4))
    *_, (_, untrained) = randomised(model.model)
    for weights, network in (("trained", model.model), ("random", untrained)):
        saliency = attribute(network, x, "attnlrp", classes)
        row = rows[weights, 0.1, "attnlrp"]
        assert row["pointing"] == pytest.approx(metrics.pointing_game(saliency, cover).mean().item(), abs=1e-5)
        assert row["auc"] == pytest.approx(metrics.roc_auc(saliency, cover).mean().item(), abs=1e-5)
        if weights == "trained":
            debiased = metrics.road(model.model, x[:4], saliency[:4])
            assert row["road"] == pytest.approx(debiased.score.mean().item(), abs=1e-5)
            assert row["saco"] == pytest.approx(metrics.saco(model.model, x[:4], saliency[:4]).mean().item(), abs=1e-5)
    assert rows["trained", 0.4, "attnlrp"]["deletion"] is rows["random", 0.1, "attnlrp"]["deletion"] is None
    assert rows["trained", 0.1, "uniform"]["auc"] == 0.5
    assert rows["trained", 0.1, "brightness"]["road"] is None
    assert rows["trained", 0.1, "random"]["road"] is not None
    assert len(found["agreement"]) == maps * (maps - 1) // 2
    one, other = (attribute(model.model, x, method, classes) for method in ("attention", "rollout"))
    row = next(row for row in found["agreement"] if (row["map"], row["other"]) == ("attention", "rollout"))
    assert row["correlation"] == pytest.approx(metrics.rank_correlation(one, other).mean().item(), abs=1e-5)
    assert {row["method"] for row in found["sanity"]} == set(METHODS)
    assert [row for row in found["sanity"] if row["method"] == "attnlrp"] == [
        {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}
        for row in randomisation(model.model, x[:3], ["attnlrp"])
    ]


def test_the_command_scores_and_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in SMALLER.items():
        monkeypatch.setattr(f"diffvit.attention.scores.{name}", value)
    (tmp_path / "maps.yaml").write_text(SMALL)
    assert run(["study", "work", "maps.yaml", "--tier", "smoke", "--device", "cpu", "--threads", "1"]) == 0
    command = ["study", "report", "maps.yaml", "--tier", "smoke"]
    assert run(command) == run(command) == 0
    found = sorted(path.name for path in Path("reports/maps").iterdir())
    assert found == ["agreement.csv", "epochs.csv", "methods.csv", "predictions.csv", "rows.csv", "sanity.csv"]
    assert len(rows.read(Path("reports/maps"))) == 2
    other = [replace(each, row=each.row | {"config_hash": "other"}) for each in rows.read(Path("reports/maps"))]
    rows.write(Path("reports/maps"), other[:1])  # as of another tier
    assert run(command) == 2
    assert len(rows.read(Path("reports/maps"))) == 1
