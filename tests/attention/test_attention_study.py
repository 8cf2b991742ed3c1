"""The study ``attention``: its runs are the committed ones, and what is scored of a run becomes rows and a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.attention import METHODS, attribute, metrics
from diffvit.attention.attribute import randomisation, randomised
from diffvit.attention.inputs import labelled_images, load_model
from diffvit.attention.scores import attribution_scores, map_scores, score_maps
from diffvit.cli.main import run
from diffvit.config import to_dict
from diffvit.errors import InputError
from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.runner import SCORES, Runner
from diffvit.experiments.study import STUDIES, Study, cells_of, load_study
from diffvit.files import read_csv
from diffvit.models.vit import VisionTransformer
from diffvit.reporting import rows
from diffvit.training.run_dir import RunDir
from tools.attention import DIFFERENTIAL, SOFTMAX, WIDE, of_folder, read_study

STUDY = STUDIES["attention"]
CELLS = cells_of(STUDY, "short")
COMMITTED = Path(__file__).parents[2] / "reports/attention"
SMALL = """
question: Where do maps lie?
attentions: []
score: attention-maps
report: false
seeds: 2
base:
  data: shapes
  epochs: 1
  whiten: false
  batch_size: 20
  validation_size: 0
  precision: fp32
  augment: {flip: false, crop: 0}
  model: {image_size: 16, patch_size: 4, embed_dim: 8, depth: 2, num_heads: 2}
  shapes: {size: 16, train: 40, test: 20}
arms:
  ViT on clutter 0: {shapes: {clutter: 0.0}}
  Diff-ViT on clutter 0: {shapes: {clutter: 0.0}, model: {attention: differential}}
  ViT on clutter 0.5: {shapes: {clutter: 0.5}}
  Diff-ViT on clutter 0.5: {shapes: {clutter: 0.5}, model: {attention: differential}}
"""


def test_the_study_is_the_committed_one_every_arm_at_every_clutter_and_on_cifar10() -> None:
    wanted = Counter((cell.arm.partition(" on ")[0], cell.config.data) for cell in CELLS)
    assert wanted == {
        **{(arm, "shapes"): 4 * 3 for arm in (SOFTMAX, DIFFERENTIAL, WIDE)},
        **{(arm, "cifar10"): 3 for arm in (SOFTMAX, DIFFERENTIAL)},
    }
    keys = [cell.key for cell in CELLS]
    assert len(set(keys)) == len(keys)
    assert keys == [record.key[:2] for record in rows.read(COMMITTED)]
    arms = {(row["config_hash"], row["seed"]): row for row in read_csv(COMMITTED / "scores.csv")}
    for cell in CELLS:
        row, shapes = arms[cell.key], cell.config.data == "shapes"
        told = f"clutter {cell.config.shapes.clutter:g}" if shapes else "CIFAR-10"
        assert cell.arm == f"{row['arm']} on {told}"
        assert row["clutter"] == (cell.config.shapes.clutter if shapes else None)
        assert cell.config.validation_size == 0
    assert {cell.config.data for cell in cells_of(STUDY, "smoke")} == {"shapes"}


def test_arms_are_of_equal_size() -> None:
    sizes = {}
    for cell in CELLS:
        if cell.arm.endswith(" on clutter 0.3") and cell.config.seed == 0:
            settings = {key: value for key, value in to_dict(cell.config.model).items() if key != "preset"}
            model = VisionTransformer(**settings)
            sizes[cell.arm.partition(" on ")[0]] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[SOFTMAX] == sizes[WIDE]
    assert abs(sizes[DIFFERENTIAL] / sizes[SOFTMAX] - 1) < 0.002


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Runner]:
    """A study of four arms and two seeds, and a worker of it."""
    monkeypatch.setitem(SCORES, "attention-maps", map_scores)
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
    before = (out / "scores.csv").read_bytes()
    assert runner.work() == len(runner.cells) - 3 == 5
    write_report(gathered(study, tmp_path / "runs", tmp_path), tmp_path)
    after = (out / "scores.csv").read_bytes()
    assert after.startswith(before)
    write_report(gathered(study, tmp_path / "none", tmp_path), tmp_path)
    assert (out / "scores.csv").read_bytes() == after
    header = "arm,config_hash,seed,data,clutter,map,pointing,mass,iou,deletion,insertion,images,removal_images"
    assert after.decode().splitlines()[0] == header
    assert str(of_folder(out)["report.md"]).startswith("# Does differential attention cancel noise?")
    found = read_study(out)
    assert (found.clutter, found.last, found.seeds) == ([0.0, 0.5], "layer 1", [0, 1])
    for arm in (SOFTMAX, DIFFERENTIAL):
        assert len(found.values(arm, "rollout", "mass")) == len(found.accuracies(arm)) == 4
        assert found.values(arm, "rollout", "deletion") == {}  # these images have masks
    assert set(found.values(SOFTMAX, "rollout, A1 alone", "mass")) == set()
    with_first = found.values(DIFFERENTIAL, "rollout, A1 alone", "mass")
    assert set(with_first) == {(seed, clutter) for seed in (0, 1) for clutter in (0.0, 0.5)}


def test_without_masks_patches_are_removed(small: tuple[Study, Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    _, runner = small
    run = runner.train(runner.cells[0])
    model = load_model(run.path)
    images = labelled_images(model)
    monkeypatch.setattr("diffvit.attention.scores._REMOVED", 5)
    monkeypatch.setattr("diffvit.attention.scores.labelled_images", lambda _: replace(images, masks=None))
    found = map_scores(run)
    plain = score_maps(model, replace(images.select(range(5)), masks=None), removal_images=5)
    assert [row["deletion"] for row in found["scores"]] == [
        None if row["deletion"] is None else round(row["deletion"], 5) for row in plain.rows
    ]
    assert {row["removal_images"] for row in found["scores"]} == {None, 5}
    assert {row["clutter"] for row in found["scores"]} == {None}
    assert len(found["removal"]) == len(plain.curves) > 0


def test_attribution_is_scored_on_masks_by_removal_with_random_weights_and_against_each_other(
    small: tuple[Study, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runner = small
    run = runner.train(next(cell for cell in runner.cells if cell.arm.startswith("Diff-ViT")))
    for name, value in {"_ATTRIBUTED": 6, "_SANITY": 3, "REMOVAL": 4, "HARD_CLUTTER": (0.0, 0.4)}.items():
        monkeypatch.setattr(f"diffvit.attention.scores.{name}", value)
    found = attribution_scores(run)
    model, maps = load_model(run.path), len(METHODS)
    images = labelled_images(model).select(range(6))
    of = Counter((row["weights"], row["clutter"]) for row in found["methods"])
    assert of == {
        **dict.fromkeys((("trained", 0.0), ("trained", 0.4)), maps + 10),
        **dict.fromkeys((("random", 0.0), ("random", 0.4)), maps),
    }
    rows = {(row["weights"], row["clutter"], row["map"]): row for row in found["methods"]}
    x = model.normalised(images.pixels)
    classes = model.model(x).argmax(dim=1)
    assert images.masks is not None
    cover = metrics.coverage(images.masks, (4, 4))
    *_, (_, untrained) = randomised(model.model)
    for weights, network in (("trained", model.model), ("random", untrained)):
        saliency = attribute(network, x, "attnlrp", classes)
        row = rows[weights, 0.0, "attnlrp"]
        assert row["pointing"] == pytest.approx(metrics.pointing_game(saliency, cover).mean().item(), abs=1e-5)
        assert row["auc"] == pytest.approx(metrics.roc_auc(saliency, cover).mean().item(), abs=1e-5)
        if weights == "trained":
            debiased = metrics.road(model.model, x[:4], saliency[:4])
            assert row["road"] == pytest.approx(debiased.score.mean().item(), abs=1e-5)
            assert row["saco"] == pytest.approx(metrics.saco(model.model, x[:4], saliency[:4]).mean().item(), abs=1e-5)
    assert rows["trained", 0.4, "attnlrp"]["deletion"] is rows["random", 0.0, "attnlrp"]["deletion"] is None
    assert rows["trained", 0.0, "uniform"]["auc"] == 0.5
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
    (tmp_path / "maps.yaml").write_text(SMALL)
    assert run(["study", "work", "maps.yaml", "--tier", "smoke", "--device", "cpu", "--threads", "1"]) == 0
    command = ["study", "report", "maps.yaml", "--tier", "smoke"]
    assert run(command) == run(command) == 0
    found = sorted(path.name for path in Path("reports/maps").iterdir())
    assert found == ["epochs.csv", "predictions.csv", "removal.csv", "rows.csv", "scores.csv"]
    assert len(rows.read(Path("reports/maps"))) == 4
    other = [replace(each, row=each.row | {"config_hash": "other"}) for each in rows.read(Path("reports/maps"))]
    rows.write(Path("reports/maps"), other[:1])  # as of another tier
    assert run(command) == 2
    assert len(rows.read(Path("reports/maps"))) == 1
