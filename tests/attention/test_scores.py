from __future__ import annotations

import dataclasses

import pytest
import torch

from diffvit.attention import attribute, capture, metrics, rollout
from diffvit.attention.baselines import by_place, mask_scores
from diffvit.attention.inputs import LoadedModel
from diffvit.attention.scores import saliency_maps, score_maps
from diffvit.data import shapes
from diffvit.errors import InputError
from diffvit.models.vit import VisionTransformer


def subject_of(attention: str = "softmax", classes: int = 10, **settings: object) -> LoadedModel:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": classes}
    model = VisionTransformer(**{**sizes, "attention": attention, **settings}).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    names = shapes.CLASSES if classes else []
    return LoadedModel(model, "a model", [0.3] * 3, [0.25] * 3, names, 32)


IMAGES = shapes.generate("test", 30)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_heats_are_those_of_capture_and_rollout(pool: str) -> None:
    subject = subject_of("differential", pool=pool)
    x = subject.normalised(IMAGES.pixels)
    found, record = saliency_maps(subject.model, x), capture(subject.model, x)
    expected = {"layer 0", "layer 1", "rollout"}
    assert set(found) == expected | {f"{name}, A1 alone" for name in expected}
    for name, heat in (
        ("layer 1", record.to_patches(1).mean(dim=1)),
        ("layer 0, A1 alone", record.to_patches(0, "positive").mean(dim=1)),
        ("rollout", rollout(record)),
        ("rollout, A1 alone", rollout(record, sign="positive")),
    ):
        assert (found[name] - heat).abs().max() < 1e-6
    assert set(saliency_maps(subject_of().model, x)) == expected


def test_what_chance_gives() -> None:
    heats = by_place(3, (4, 6), seed=1)
    assert set(heats) == {"uniform", "centre", "random"}
    assert all(heat.shape == (3, 4, 6) for heat in heats.values())
    middle = heats["centre"][0]
    assert (middle.flip(0) - middle).abs().max() < 1e-6
    assert (middle.flip(1) - middle).abs().max() < 1e-6
    assert set(middle.flatten().topk(4).indices.tolist()) == {8, 9, 14, 15}
    assert torch.equal(by_place(3, (4, 6), seed=1)["random"], heats["random"])
    assert not torch.equal(by_place(3, (4, 6), seed=2)["random"], heats["random"])


def test_rows_are_means_of_the_scores_of_each_image() -> None:
    subject = subject_of()
    found = score_maps(subject, IMAGES, removal_images=12)
    rows = {row["map"]: row for row in found.rows}
    assert list(rows) == ["layer 0", "layer 1", "rollout", "uniform", "centre", "random"]
    x = subject.normalised(IMAGES.pixels)
    heat = rollout(capture(subject.model, x))
    assert IMAGES.masks is not None
    for key, values in mask_scores(heat, IMAGES.masks).items():
        assert rows["rollout"][key] == pytest.approx(float(values.mean()), abs=1e-6)
    taken = metrics.removal(subject.model, x[:12], heat[:12])  # pyright: ignore[reportArgumentType]
    assert rows["rollout"]["deletion"] == pytest.approx(float(taken.deletion_area.mean()), abs=1e-5)
    assert rows["rollout"]["insertion"] == pytest.approx(float(taken.insertion_area.mean()), abs=1e-5)
    assert rows["layer 0"]["deletion"] is None
    assert {row["images"] for row in found.rows} == {30}
    assert rows["rollout"]["removal_images"] == 12
    share = metrics.coverage(IMAGES.masks, (8, 8)).mean()
    assert rows["uniform"]["mass"] == pytest.approx(float(share), abs=1e-5)
    curve = [row for row in found.curves if row["map"] == "rollout"]
    assert [row["share"] for row in curve] == [step / 16 for step in range(17)]
    assert [row["deletion"] for row in curve] == pytest.approx(taken.deletion.mean(0).tolist(), abs=1e-5)


def test_methods_are_scored_beside_the_maps() -> None:
    subject, few = subject_of("differential"), IMAGES.select(range(10))
    without = score_maps(subject, few, removal_images=4)
    found = score_maps(subject, few, removal_images=4, methods=["rollout", "attnlrp"])  # rollout is among the maps
    rows = {row["map"]: row for row in found.rows}
    assert [row for row in found.rows if row["map"] != "attnlrp"] == without.rows
    assert [row for row in found.curves if row["map"] != "attnlrp"] == without.curves
    x = subject.normalised(few.pixels)
    expected = attribute(subject.model, x, "attnlrp")
    assert few.masks is not None
    for key, values in mask_scores(expected, few.masks).items():
        assert rows["attnlrp"][key] == pytest.approx(float(values.mean()), abs=1e-5)
    taken = metrics.removal(subject.model, x[:4], expected[:4])  # pyright: ignore[reportArgumentType]
    assert rows["attnlrp"]["insertion"] == pytest.approx(float(taken.insertion_area.mean()), abs=1e-5)


def test_without_masks_only_deletion_and_insertion() -> None:
    found = score_maps(subject_of(), dataclasses.replace(IMAGES, masks=None), removal_images=4)
    assert all(row["pointing"] is row["mass"] is row["iou"] is None for row in found.rows)
    removed = {row["map"] for row in found.rows if row["deletion"] is not None}
    assert removed == {"layer 1", "rollout", "centre", "random"}


def test_a_model_without_classes_is_not_taken_apart() -> None:
    subject = subject_of(classes=0)
    assert score_maps(subject, IMAGES).curves == []
    with pytest.raises(InputError, match="deletion and insertion need class probabilities"):
        score_maps(subject, IMAGES, removal_images=4)
