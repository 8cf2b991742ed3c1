"""The attention study's tables, as Markdown."""

from __future__ import annotations

from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import span
from diffvit.reporting.attention_rows import DIFFERENTIAL, FIRST_MAP, METRICS, SOFTMAX, WIDE, Study, Values, gap
from diffvit.reporting.tables import Table


def by_clutter(study: Study, name: str, metric: str) -> str:
    """Rollout's or a layer's score in one metric: a line per clutter level, a column per arm and baseline."""
    arms = (SOFTMAX, WIDE, DIFFERENTIAL)
    columns = [f"Clutter ({METRICS[metric]})", *arms, "uniform", "centre", "Diff-ViT minus ViT (95% paired interval)"]
    lines = []
    for clutter in study.clutter:
        cells = [_mean(study.values(arm, name, metric), clutter) for arm in arms]
        cells += [_mean(study.values(SOFTMAX, chance, metric), clutter) for chance in ("uniform", "centre")]
        lines.append([f"{clutter:g}", *cells, _cell(study, name, metric, clutter)])
    return markdown.table(Table(columns, lines))


def _cell(study: Study, name: str, metric: str, clutter: float) -> str:
    ours, theirs = (study.values(arm, name, metric) for arm in (DIFFERENTIAL, SOFTMAX))
    interval = gap(ours, theirs, study.images(metric), clutter=clutter)
    return "-" if interval is None else f"{100 * interval.estimate:+.1f} ({span(interval)})"


def _mean(values: Values, clutter: float | None) -> str:
    found = [value for (_, level), value in values.items() if level == clutter]
    if not found:
        return "-"
    spread = stats.std(found)
    return f"{100 * stats.mean(found):.1f}" + (f" ± {100 * spread:.1f}" if spread else "")


def subtraction(study: Study) -> str:
    """Mass on the object by Diff-ViT's effective maps and by its first maps alone."""
    names = [*study.layers, "rollout"]
    lines = []
    for name in names:
        whole, first = (study.values(DIFFERENTIAL, each, "mass") for each in (name, name + FIRST_MAP))
        both = [f"{100 * stats.mean(list(part.values())):.1f}" if part else "-" for part in (whole, first)]
        interval = gap(whole, first, study.images("mass"))
        lines.append([name, *both, "-" if interval is None else f"{100 * interval.estimate:+.1f} ({span(interval)})"])
    return markdown.table(Table(["Mass on the object, %", "effective", "A1 alone", "difference (95%)"], lines))


def removal_note(study: Study) -> str:
    """How patches were taken away and put in, and on which images."""
    counts = {row["data"]: row["removal_images"] for row in study.scores if row["removal_images"]}
    told = ", ".join(
        f"{count:,} test images of {study.names.get(data, data)}" for data, count in sorted(counts.items())
    )
    return (
        "Patches are replaced by the data's mean colour, those of most heat first (deletion), or put into an empty "
        "image in that order (insertion); the area is the mean probability of the class that the whole image is given. "
        f"{told}."
    )


def removal(study: Study) -> str:
    """Areas of deletion and insertion on CIFAR-10."""
    lines = []
    for name in ("rollout", study.last, "centre", "random"):
        for metric in ("deletion", "insertion"):
            first, second = (study.values(arm, name, metric, "cifar10") for arm in (DIFFERENTIAL, SOFTMAX))
            means = [f"{stats.mean(list(part.values())):.3f}" if part else "-" for part in (second, first)]
            interval = gap(first, second, study.images(metric, "cifar10"))
            told = (
                "-" if interval is None else f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
            )
            better = "lower is better" if metric == "deletion" else "higher is better"
            lines.append([f"{name}, {metric} ({better})", *means, told])
    return markdown.table(Table(["Area", SOFTMAX, DIFFERENTIAL, "Diff-ViT minus ViT (95%)"], lines))


def accuracy(study: Study) -> str:
    """Test accuracy of every arm."""
    arms = (SOFTMAX, WIDE, DIFFERENTIAL)
    lines = []
    for clutter in study.clutter:
        ours, theirs = (study.accuracies(arm) for arm in (DIFFERENTIAL, SOFTMAX))
        found = gap(ours, theirs, study.images("accuracy"), clutter=clutter)
        told = "-" if found is None else f"{100 * found.estimate:+.1f} ({span(found)})"
        lines.append([f"shapes, clutter {clutter:g}", *(_mean(study.accuracies(arm), clutter) for arm in arms), told])
    on_cifar = [study.accuracies(arm, "cifar10") for arm in arms]
    found = gap(on_cifar[2], on_cifar[0], study.images("accuracy", "cifar10"))
    told = "-" if found is None else f"{100 * found.estimate:+.1f} ({span(found)})"
    lines.append([study.names.get("cifar10", "CIFAR-10"), *(_mean(part, None) for part in on_cifar), told])
    return markdown.table(Table(["Test accuracy, %", *arms, "Diff-ViT minus ViT (95%)"], lines))
