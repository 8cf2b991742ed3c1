"""All studies on one screen: the best arm of each, and where differential attention helps."""

from __future__ import annotations

from collections.abc import Sequence

from diffvit.experiments.results import Line, Results, compared_arms, difference, over_all_arms
from diffvit.experiments.study import BOTH
from diffvit.reporting.arms import MODEL_NAMES, points, span
from diffvit.reporting.stats import Interval
from diffvit.reporting.tables import NONE, Table, percent

BEST_NOTE = (
    "The best arm of each attention and its mean test accuracy; chosen by validation accuracy where the study's rows "
    "have one, else, marked *, on the test set. **Bold** beats every other arm of its study surely (95% intervals over "
    "seeds and test images that hold together over all pairs of arms); the others do not, or have too few seeds to say."
)
WHERE_NOTE = (
    "Points of test accuracy, paired by seed. Mean over the arms: with its 95% interval, the seed as the unit. The "
    "arms where Diff-ViT stands best and worst beside ViT are the extremes of several, and go by their means alone. "
    "Arms that hardly learn with either, under half of the study's best accuracy, are left out."
)


def best_arms(found: Sequence[Results]) -> Table:
    """A row per study that compares arms of both attentions: the best arm of each."""
    rows = [
        [results.study.question, *(_best(results.of(attention), results) for attention in BOTH), _kind(results)]
        for results in found
        if results.study.attentions
    ]
    return Table(["Question", *(MODEL_NAMES[attention] for attention in BOTH), "Tier, seeds"], rows)


def _best(lines: Sequence[Line], results: Results) -> str:
    if not lines:
        return NONE
    best = results.best(lines)
    ranked = results.ranking(lines)
    others = [place for place, line in enumerate(lines) if line is not best]
    surely = ranked and others and all(ranked.between(lines.index(best), place).low > 0 for place in others)
    name = f"**{best.arm}**" if surely else best.arm
    return f"{name}, {percent(best.mean, 1)}{'*' if results.chosen_on == 'test' else ''}"


def where_it_helps(found: Sequence[Results]) -> Table:
    """A row per study: differential minus softmax over all arms, and the arms where it stands best and worst."""
    rows = []
    for results in found:
        over_all = over_all_arms(results, "differential", "softmax")
        apart = sorted(_by_arm(results), key=lambda each: -each[1])
        if over_all is None or len(apart) < 2:
            continue
        best, worst = (f"{arm}, {points(apart_by)}" for arm, apart_by in (apart[0], apart[-1]))
        rows.append([results.study.name, _cell(over_all), best, worst, _verdict(over_all, results), _kind(results)])
    title = "Diff-ViT minus ViT, mean over the arms"
    return Table(["Study", title, "Best at", "Worst at", "Ahead", "Tier, seeds"], rows)


def _by_arm(results: Results) -> list[tuple[str, float]]:
    apart = ((ours.arm, difference(ours, theirs)) for ours, theirs in compared_arms(results, "differential", "softmax"))
    return [(arm, found.estimate) for arm, found in apart if found is not None]


def _cell(interval: Interval) -> str:
    return f"{100 * interval.estimate:+z.2f} ({span(interval)})"


def _verdict(interval: Interval, results: Results) -> str:
    if not results.may_rank:
        return "exploratory"
    if not interval.excludes_zero:
        return "not decided"
    return MODEL_NAMES["differential" if interval.estimate > 0 else "softmax"]


def _kind(results: Results) -> str:
    return f"{results.tier}, {results.seeds}"
