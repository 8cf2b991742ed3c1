"""The attention study's rows, and the paired gaps between its arms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffvit.reporting import stats
from diffvit.reporting.rows import Row, RunRecord

FOLDER = Path("reports/attention")
SCORES, CURVES = "scores.csv", "removal.csv"
SOFTMAX, DIFFERENTIAL, WIDE = "ViT", "Diff-ViT", "ViT, half the heads"
METRICS = {"pointing": "pointing game", "mass": "mass on the object", "iou": "IoU at half the mass"}
FIRST_MAP = ", A1 alone"
Values = dict[tuple[int, float | None], float]  # by seed and clutter


@dataclass(frozen=True)
class Study:
    """All rows of the study.

    Args:
        records: of the trainings.
        scores: per trained model and map.
        curves: per trained model, map and share of patches.
    """

    records: list[RunRecord]
    scores: list[Row]
    curves: list[Row]

    @cached_property
    def last(self) -> str:
        """Name of the last layer's map."""
        return self.layers[-1]

    @cached_property
    def maps(self) -> list[str]:
        """Every map's name, in the order of the rows."""
        return list(dict.fromkeys(str(row["map"]) for row in self.scores))

    @cached_property
    def layers(self) -> list[str]:
        """Names of the layers' own maps, first to last."""
        return [name for name in self.maps if name.startswith("layer") and FIRST_MAP not in name]

    @cached_property
    def clutter(self) -> list[float]:
        """The levels, ascending."""
        return sorted({row["clutter"] for row in self.scores if row["clutter"] is not None})

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({row["seed"] for row in self.scores})

    @cached_property
    def names(self) -> dict[str, str]:
        """What each source's data is called wherever a result is quoted, as ``cifar10`` to ``CIFAR-10 (JPEG)``."""
        found = {
            str(record.row["source"]): str(record.row["data"]) for record in self.records if "source" in record.row
        }
        return {**found, "shapes": "shapes"}

    def values(self, arm: str, name: str, metric: str, data: str = "shapes") -> Values:
        """A score by seed and clutter."""
        return {
            (row["seed"], row["clutter"]): row[metric]
            for row in self.scores
            if (row["arm"], row["map"], row["data"]) == (arm, name, data) and row[metric] is not None
        }

    def images(self, metric: str, data: str = "shapes") -> int | None:
        """Of how many test images a metric, or ``accuracy``, is the mean; the fewest of its rows, None where unknown.

        Clutter levels have images of their own, which makes an interval of their mean wider than it need be.
        """
        if metric == "accuracy":
            sources = {row["config_hash"]: row["data"] for row in self.scores}
            counts = [each.row["test_images"] for each in self.records if sources.get(each.row["config_hash"]) == data]
        else:
            column = "removal_images" if metric in ("deletion", "insertion") else "images"
            counts = [row[column] for row in self.scores if row["data"] == data]
        return min((int(count) for count in counts if count), default=None)

    def accuracies(self, arm: str, data: str = "shapes") -> Values:
        """Test accuracy by seed and clutter."""
        owners = {(row["config_hash"], row["seed"]): row for row in self.scores if row["arm"] == arm}
        return {
            (owner["seed"], owner["clutter"]): record.row["test_accuracy"]
            for record in self.records
            if (owner := owners.get((record.row["config_hash"], record.row["seed"]))) and owner["data"] == data
        }


def gap(
    first: Values, second: Values, images: int | None, comparisons: int = 1, clutter: float | None = None
) -> stats.Interval | None:
    """First minus second, paired by seed; None for fewer than two seeds.

    The pairs of one seed, one per clutter level, are averaged first (or those at one level taken, if given): they start
    from the same weights, so they are no independent evidence of what training does.

    Args:
        first: scores in [0, 1], such as shares of images.
        second: likewise.
        images: that each score is a mean over; its sampling variance is bounded by that of a share.
        comparisons: that were chosen beforehand and are made together (Bonferroni).
        clutter: this level alone.
    """
    pairs = [key for key in differences(first, second) if clutter is None or key[1] == clutter]
    seeds = sorted({seed for seed, _ in pairs})
    if len(seeds) < 2:
        return None
    one, two = (
        [stats.mean([side[key] for key in pairs if key[0] == seed]) for seed in seeds] for side in (first, second)
    )
    return stats.paired_difference(one, two, images, 1 - (1 - stats.CONFIDENCE) / comparisons)


def differences(first: Values, second: Values) -> Values:
    """First minus second for every pair of seed and clutter that both have."""
    return {key: first[key] - second[key] for key in sorted(first.keys() & second.keys(), key=str)}
