"""What the attention study found, in tables and sentences that are worked out from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffvit.reporting import attention_tables as tables
from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import points, span
from diffvit.reporting.attention_rows import (
    DIFFERENTIAL,
    FIRST_MAP,
    METRICS,
    SOFTMAX,
    WIDE,
    Study,
    Values,
    differences,
    gap,
)

_METHOD = """Models of equal size (4 blocks, 128 wide, [CLS]) are trained on `shapes`, one object among clutter and
noise, whose mask is known, at each clutter level, and on CIFAR-10. Their [CLS]-to-patch maps are then scored on test
images: does the highest patch lie on the object (pointing game), which share of the map's positive mass does, and
how well do the fewest patches that hold half of the mass overlap it. "Layer" is that layer's map averaged over
heads; "rollout" follows all layers (negative entries of differential maps cut off). The third arm has half the
heads, each as wide as a differential head's value. Three baselines look at nothing: a uniform map, a Gaussian in
the middle, random numbers."""
_LIMITS = """- A map tells where a head reads, not what it does with what it reads: values, norms and MLPs act after it.
- The object is large and never far from the middle, so the middle alone scores well: compare with that line,
  not with 0.
- An interval covers seeds and test images. Two arms of one seed are trained on the same images in the same order, and
  their difference is averaged over the clutter levels before it counts as one. With three seeds an interval is wide,
  and "undecided" is what it says. How many of the single pairs fall on which side is given beside it.
- Models this small, and these two data sets: nothing here speaks of large ones."""
_ADJUSTED = (
    "Better and worse are said only where the interval, widened for the number of lines in its list (Bonferroni), "
    "excludes 0."
)


@dataclass(frozen=True)
class Question:
    """One comparison: two maps, each (arm, map), in one metric."""

    label: str
    first: tuple[str, str]
    second: tuple[str, str]
    metric: str


@dataclass(frozen=True)
class Answer:
    """Its 95% interval, and the one widened for the number of questions asked with it; None for too few seeds.

    ``pairs`` are the single differences, one per seed and clutter level.
    """

    question: Question
    interval: stats.Interval | None
    widened: stats.Interval | None
    pairs: tuple[float, ...] = ()

    @property
    def outcome(self) -> str:
        """better, worse or undecided, for the first of the two."""
        if self.widened is None or not self.widened.excludes_zero:
            return "undecided"
        return "better" if (self.widened.low > 0) != (self.question.metric == "deletion") else "worse"


def between(study: Study, first: str, second: str) -> list[Question]:
    """Where two arms' maps lie: rollout's and the last layer's, by every metric."""
    return [
        Question(f"{name}, {text}", (first, name), (second, name), metric)
        for name in ("rollout", study.last)
        for metric, text in METRICS.items()
    ]


def within(study: Study) -> list[Question]:
    """What the subtraction does to the mass on the object, in each layer and in all."""
    return [
        Question(f"{name}, mass on the object", (DIFFERENTIAL, name), (DIFFERENTIAL, name + FIRST_MAP), "mass")
        for name in (*study.layers, "rollout")
    ]


def taken_apart(study: Study) -> list[Question]:
    """Deletion and insertion in the order of two arms' maps."""
    return [
        Question(f"{name}, {metric} area", (DIFFERENTIAL, name), (SOFTMAX, name), metric)
        for name in ("rollout", study.last)
        for metric in ("deletion", "insertion")
    ]


def answers(study: Study, questions: Sequence[Question], data: str = "shapes") -> list[Answer]:
    """Every question over the seeds, and the pairs of seed and clutter, that both maps have."""
    found = []
    for question in questions:
        first, second = (study.values(*side, question.metric, data) for side in (question.first, question.second))
        pairs = tuple(differences(first, second).values())
        images = study.images(question.metric, data)
        widened = gap(first, second, images, comparisons=len(questions))
        found.append(Answer(question, gap(first, second, images), widened, pairs))
    return found


def report(study: Study) -> str:
    """The whole report as Markdown."""
    rows = [record.row for record in study.records]
    notes = markdown.data_lines(row for row in rows if str(row["data"]).startswith("CIFAR"))
    parts = ["# Does differential attention cancel noise?", _METHOD, *notes, "## In short", *_in_short(study)]
    parts += ["## The object among clutter", "Rollout, mean over seeds; in the last column Diff-ViT minus ViT."]
    parts += [tables.by_clutter(study, "rollout", metric) for metric in METRICS]
    parts += ["![Scores of rollout against clutter](on-object.png)", f"The last layer's map ({study.last}):"]
    parts += [tables.by_clutter(study, study.last, metric) for metric in METRICS]
    parts += ["![Scores of the last layer's map against clutter](last-layer.png)", "## What the subtraction does"]
    parts += ["Within the same Diff-ViT: the effective map against its first map alone, averaged over clutter levels."]
    parts += [tables.subtraction(study), "![Mass on the object by layer](subtraction.png)"]
    parts += [
        "## Deletion and insertion",
        tables.removal_note(study),
        tables.removal(study),
        "![Deletion and insertion curves](removal.png)",
        "## Accuracy",
    ]
    parts += [tables.accuracy(study), "![Accuracy against clutter](accuracy.png)", "## What this cannot tell", _LIMITS]
    parts += ["## Repeat", "```\nmake attention-study\n```", _circumstances(study)]
    return "\n\n".join(parts) + "\n"


def _in_short(study: Study) -> list[str]:
    own, inner = answers(study, between(study, DIFFERENTIAL, SOFTMAX)), answers(study, within(study))
    cifar = answers(study, taken_apart(study), "cifar10")
    accuracy = gap(study.accuracies(DIFFERENTIAL), study.accuracies(SOFTMAX), study.images("accuracy"))
    return [
        f"{_verdict(own)} {_verdict_within(inner)} {_verdict_cifar(cifar)}",
        "**Diff-ViT's maps minus ViT's, on shapes:**",
        _list(own),
        "**Diff-ViT's maps minus those of the ViT with half the heads:**",
        _list(answers(study, between(study, DIFFERENTIAL, WIDE))),
        "**Within Diff-ViT, the effective map minus its first map alone:**",
        _list(inner),
        f"**Growing with clutter?** {_trend(study)}",
        "**CIFAR-10, Diff-ViT minus ViT** (of deletion, less is better):",
        _list(cifar),
        f"**Accuracy on shapes, Diff-ViT minus ViT:** {_one(accuracy)}.",
        _ADJUSTED,
    ]


def _verdict(found: Sequence[Answer]) -> str:
    said = _by_outcome(found)
    return (
        f"Of {len(found)} comparisons of where the two models' maps lie, {len(said['better'])} favour Diff-ViT"
        f"{_named(said['better'])}, {len(said['worse'])} favour ViT{_named(said['worse'])}, and "
        f"{len(said['undecided'])} are undecided."
    )


def _verdict_within(found: Sequence[Answer]) -> str:
    said = _by_outcome(found)
    return (
        f"Within Diff-ViT the subtraction moves mass onto the object in {len(said['better'])} of {len(found)} maps"
        f"{_named(said['better'])}, away from it in {len(said['worse'])}{_named(said['worse'])}; "
        f"{len(said['undecided'])} are undecided."
    )


def _verdict_cifar(found: Sequence[Answer]) -> str:
    said = _by_outcome(found)
    return (
        f"On CIFAR-10, deletion and insertion favour Diff-ViT in {len(said['better'])} of {len(found)} comparisons and "
        f"ViT in {len(said['worse'])}; {len(said['undecided'])} are undecided."
    )


def _by_outcome(found: Sequence[Answer]) -> dict[str, list[str]]:
    outcomes = ("better", "worse", "undecided")
    return {word: [each.question.label for each in found if each.outcome == word] for word in outcomes}


def _named(labels: Sequence[str]) -> str:
    return f" ({'; '.join(labels)})" if labels else ""


def _list(found: Sequence[Answer]) -> str:
    lines = []
    for each in found:
        above = sum(pair > 0 for pair in each.pairs)
        told = f"; above 0 in {above} of {len(each.pairs)} pairs" if each.pairs else ""
        widened = f"; for all {len(found)} lines together {span(each.widened)}" if each.widened else ""
        lines.append(f"- {each.question.label}: {_one(each.interval)}{widened}{told}: {each.outcome}")
    return "\n".join(lines)


def _one(interval: stats.Interval | None) -> str:
    if interval is None:
        return "too few seeds"
    return f"{points(interval.estimate).removesuffix(' points')} points (95% paired interval {span(interval)})"


def _trend(study: Study) -> str:
    """How the gap between the arms changes from the least clutter to the most, over the seeds."""
    low, high = study.clutter[0], study.clutter[-1]
    sentences = []
    for metric, text in METRICS.items():
        ours, theirs = (study.values(arm, "rollout", metric) for arm in (DIFFERENTIAL, SOFTMAX))
        seeds = [
            seed for seed in study.seeds if all((seed, at) in side for side in (ours, theirs) for at in (low, high))
        ]
        # (ours at high + theirs at low) - (theirs at high + ours at low), halved: each side is a mean score again.
        one: Values = {(seed, None): (ours[seed, high] + theirs[seed, low]) / 2 for seed in seeds}
        two: Values = {(seed, None): (theirs[seed, high] + ours[seed, low]) / 2 for seed in seeds}
        half = gap(one, two, study.images(metric))
        whole = half and stats.Interval(2 * half.estimate, 2 * half.low, 2 * half.high)
        sentences.append(f"{text}: {_one(whole)}")
    return f"The gap (rollout) at clutter {high:g} minus the gap at {low:g}: {'; '.join(sentences)}."


def _circumstances(study: Study) -> str:
    first = study.records[0].row
    data = ", ".join(dict.fromkeys(str(record.row["data"]) for record in study.records))
    images = {row["data"]: row["images"] for row in study.scores}
    told = ", ".join(f"{count:,} of {study.names.get(name, name)}" for name, count in sorted(images.items()))
    return (
        f"{len(study.records)} trained models, seeds {', '.join(map(str, study.seeds))}; data: {data}; maps scored on "
        f"the first test images ({told}); {first['hardware']}, {first['precision']}, torch {first['torch']}, diffvit "
        f"{first['diffvit']}. rows.csv, epochs.csv, scores.csv and removal.csv hold the numbers."
    )
