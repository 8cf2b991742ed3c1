"""A model's maps, scored: which heat is compared, against what, and the table that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffvit.attention.capture import Inside, Record, captures
from diffvit.attention.metrics import coverage, mass_on_object, overlap, pointing_game, removal
from diffvit.attention.rollout import rollout
from diffvit.attention.subject import Subject, labelled_images, of_run
from diffvit.data.images import Images
from diffvit.errors import InputError
from diffvit.training.run_dir import RunDir

Row = dict[str, Any]
_MASKED, _REMOVED = 2000, 500  # test images scored of a run in a study, with masks and without
SHARE = 0.5  # of the mass, that the overlap's threshold keeps
METRICS = {"pointing": "pointing game", "mass": "mass on the object", "iou": "IoU at half the mass"}
FIRST_MAP = ", A1 alone"  # after the name of a map: of differential attention, without the subtraction
CHANCE = ("uniform", "centre", "random")  # what a map without any attention scores


@dataclass(frozen=True)
class Scores:
    """What a model's maps score on one set of images.

    Args:
        rows: one per map: ``map``, ``pointing``, ``mass``, ``iou`` (None without masks), ``deletion``, ``insertion``
            (None where not asked for), ``images``, ``removal_images``; means over the images.
        curves: per map and share of patches: ``map``, ``share``, ``deletion``, ``insertion``; means over the images.
    """

    rows: list[Row]
    curves: list[Row]


def heats_of(model: Inside, images: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n rows columns"]]:
    """Every heat that is scored, by name: each layer's map, averaged over its heads, and rollout.

    For differential attention that is the effective map, and beside it the first map alone (``layer 2, A1 alone``), so
    that what the subtraction does is seen within one model; and rollout of both (``clamp`` for the effective map).
    """
    parts: dict[str, list[Tensor]] = {}
    for record in captures(model, images):
        for name, heat in _heats(record).items():
            parts.setdefault(name, []).append(heat.float())
    return {name: torch.cat(found) for name, found in parts.items()}


def _heats(record: Record) -> dict[str, Tensor]:
    layers = range(len(record.layers))
    found = {f"layer {record.blocks[at]}": record.to_patches(at).mean(dim=1) for at in layers}
    found["rollout"] = rollout(record)
    if record.differential:
        for at in layers:
            found[f"layer {record.blocks[at]}{FIRST_MAP}"] = record.to_patches(at, "positive").mean(dim=1)
        found[f"rollout{FIRST_MAP}"] = rollout(record, sign="positive")
    return found


def chance(count: int, grid: tuple[int, int], seed: int = 0) -> dict[str, Float[Tensor, "n rows columns"]]:
    """Heat that knows nothing of the image: ``uniform``; ``centre``, a Gaussian in the middle; ``random``."""
    rows, columns = grid
    down = (torch.arange(rows) + 0.5) / rows - 0.5
    across = (torch.arange(columns) + 0.5) / columns - 0.5
    middle = torch.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 0.25**2))
    draws = torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    return {"uniform": torch.ones(count, rows, columns), "centre": middle.expand(count, -1, -1), "random": draws}


def mask_scores(heat: Float[Tensor, "n rows columns"], masks: Bool[Tensor, "n h w"]) -> dict[str, Float[Tensor, " n"]]:
    """Pointing game, mass on the object, and overlap at half the mass, per image."""
    cover = coverage(masks, (heat.shape[1], heat.shape[2]))
    return {
        "pointing": pointing_game(heat, cover),
        "mass": mass_on_object(heat, cover),
        "iou": overlap(heat, cover, SHARE),
    }


def score_maps(
    subject: Subject, images: Images, *, removal_images: int = 0, removal_maps: Sequence[str] | None = None
) -> Scores:
    """Score every heat of :func:`heats_of` and of :func:`chance` on one set of images.

    Args:
        subject: a classifier.
        images: with masks, for the scores against the truth; without, deletion and insertion alone.
        removal_images: how many of them, the first, to take apart for deletion and insertion; the costly part.
        removal_maps: whose curves to draw; by default the last layer's, rollout's and chance's.

    Raises:
        InputError: a model without classes is asked for deletion and insertion.
    """
    if removal_images and not subject.classes:
        raise InputError(subject.name, "has no classes whose probability could fall: no deletion, no insertion")
    heats = heats_of(subject.model, subject.normalised(images.pixels))
    grid = next(iter(heats.values())).shape[1:]
    heats |= chance(len(images), (grid[0], grid[1]))
    few = min(removal_images, len(images))
    if removal_maps is None:
        removal_maps = _last_and_rollout(heats)
    rows: list[Row] = []
    curves: list[Row] = []
    for name, heat in heats.items():
        row: Row = {"map": name, "pointing": None, "mass": None, "iou": None, "deletion": None, "insertion": None}
        row |= {"images": len(images), "removal_images": None}
        if images.masks is not None:
            row |= {key: float(found.mean()) for key, found in mask_scores(heat, images.masks).items()}
        if few and name in removal_maps:
            row |= _removal(subject, images, name, heat, few, curves)
        rows.append(row)
    return Scores(rows, curves)


def map_scores(run: RunDir) -> dict[str, list[Row]]:
    """What a study with ``score: attention-maps`` measures: the tables of :class:`Scores`, to five digits.

    The maps of a run are scored on its own test images: where these have masks, on the first 2,000 against the masks,
    else on the first 500 by deletion and insertion.

    Raises:
        InputError: the data is missing or damaged, or the model has no maps.
    """
    images = labelled_images(run.path)
    masked = images.masks is not None
    images = images.select(range(min(_MASKED if masked else _REMOVED, len(images))))
    found = score_maps(of_run(run.path), images, removal_images=0 if masked else len(images))
    key = {"data": run.config.data, "clutter": run.config.shapes.clutter if masked else None}
    tables = {"scores": found.rows, "removal": found.curves}
    return {name: [key | _rounded(row) for row in rows] for name, rows in tables.items()}


def _rounded(row: Row) -> Row:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}


def _removal(subject: Subject, images: Images, name: str, heat: Tensor, count: int, curves: list[Row]) -> Row:
    assert isinstance(subject.model, nn.Module)
    found = removal(subject.model, subject.normalised(images.pixels[:count]), heat[:count])
    points = zip(found.shares.tolist(), found.deletion.mean(0).tolist(), found.insertion.mean(0).tolist(), strict=True)
    curves += [{"map": name, "share": at, "deletion": gone, "insertion": put} for at, gone, put in points]
    areas = {"deletion": found.deletion_area, "insertion": found.insertion_area}
    return {key: float(area.mean()) for key, area in areas.items()} | {"removal_images": count}


def _last_and_rollout(heats: Mapping[str, Tensor]) -> list[str]:
    last = max(int(name.removeprefix("layer ")) for name in heats if name.removeprefix("layer ").isdigit())
    names = [f"layer {last}", f"layer {last}{FIRST_MAP}", "rollout", f"rollout{FIRST_MAP}", "centre", "random"]
    return [name for name in names if name in heats]
