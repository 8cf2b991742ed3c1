"""The plots of a report, each a function from arms to PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from diffvit.registry import FROM_LAMBDA_INIT
from diffvit.reporting.arms import Arm
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from diffvit.reporting.tables import reading_order

_FEW_EPOCHS = 15  # up to here every epoch gets a marker, so that one epoch is still seen


def curves(grouped: Sequence[Arm], *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Loss and accuracy against the epoch, side by side, all arms in both."""
    made = figure(theme, 11.6, 4.6)
    left, right = made.subplots(1, 2)
    _draw_loss(left, grouped, theme)
    _draw_accuracy(right, grouped, theme)
    return to_png(made, stamp)


def curve(name: str, grouped: Sequence[Arm], *, theme: Theme = LIGHT) -> bytes:
    """``loss`` or ``accuracy`` (with the final test accuracy) against the epoch, on training and validation images."""
    made = figure(theme, 5.8, 4.3)
    {"loss": _draw_loss, "accuracy": _draw_accuracy}[name](made.subplots(), grouped, theme)
    return to_png(made)


def _draw_loss(axes: Axes, grouped: Sequence[Arm], theme: Theme) -> None:
    validated = _draw_lines(axes, grouped, theme, "train_loss", "val_loss", 1.0)
    dress(axes, theme, title="Loss", x="epoch", y="cross-entropy (nats)")
    handles = [Line2D([], [], color=colour(theme, i), lw=2.4, label=arm.label) for i, arm in enumerate(grouped)]
    _legend(axes, theme, [*handles, *_style_handles(theme, validated, grouped)])


def _draw_accuracy(axes: Axes, grouped: Sequence[Arm], theme: Theme) -> None:
    validated = _draw_lines(axes, grouped, theme, "train_accuracy", "val_accuracy", 100.0)
    handles: list[Line2D] = []
    for index, arm in enumerate(grouped):
        shade = colour(theme, index)
        # Each arm's stars stand in a column of their own right of the last epoch, so that equal ones are both seen.
        beside = ScaledTranslation((6 + 11 * index) / 72, 0, axes.figure.dpi_scale_trans)
        last = max((row["epoch"] for record in arm.records for row in record.epochs), default=1)
        for value in arm.accuracies.values():
            spot = axes.transData + beside
            axes.plot(last, 100 * value, "*", ms=12, color=shade, mew=0, clip_on=False, zorder=5, transform=spot)
        values = list(arm.accuracies.values())
        found = f": test {100 * sum(values) / len(values):.1f}%" if values else ""
        handles.append(Line2D([], [], color=shade, lw=2.4, marker="*", ms=11, label=arm.label + found))
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.03 * len(grouped) * (right - left))  # the stars' columns are on the axes too
    _include(axes, [100 * value for arm in grouped for value in arm.accuracies.values()])
    dress(axes, theme, title="Accuracy", x="epoch", y="images right")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    _legend(axes, theme, [*handles, *_style_handles(theme, validated, grouped)])


def _include(axes: Axes, values: Sequence[float]) -> None:
    """Stretch the vertical axis over values drawn beside it."""
    for value in values:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, value - 1), max(high, value + 1))


def _draw_lines(axes: Axes, grouped: Sequence[Arm], theme: Theme, train: str, val: str, factor: float) -> bool:
    """Every run's two lines; whether any run has validation figures (else training is drawn solid)."""
    runs = [(index, record) for index, arm in enumerate(grouped) for record in arm.records]
    validated = any(row.get(val) is not None for _, record in runs for row in record.epochs)
    for index, record in runs:
        for name, dashed in ((train, validated), (val, False)):
            points = [(row["epoch"], factor * row[name]) for row in record.epochs if row.get(name) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour(theme, index),
                    linestyle=(0, (4, 2)) if dashed else "-",
                    linewidth=1.4 if dashed else 2.2,
                    marker="o" if len(points) <= _FEW_EPOCHS else None,
                    markersize=4.5,
                )
    _epoch_axis(axes, max((len(record.epochs) for _, record in runs), default=1))
    if all(len(record.epochs) < 3 for _, record in runs):
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])  # one or two points fill any axis: zero keeps them in proportion
    return validated


def _epoch_axis(axes: Axes, epochs: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if epochs <= 2:
        axes.set_xlim(0.5, epochs + 0.5)


def _style_handles(theme: Theme, validated: bool, grouped: Sequence[Arm]) -> list[Line2D]:
    settings = [record.row for arm in grouped for record in arm.records]
    mixed = any(float(row.get(f"augment.{name}") or 0) > 0 for row in settings for name in ("mixup", "cutmix"))
    training = "training images (mixed, so harder)" if mixed else "training images"
    if not validated:
        return [Line2D([], [], color=theme.ink, lw=2.0, label=training)]
    return [
        Line2D([], [], color=theme.ink, lw=2.0, label="validation images"),
        Line2D([], [], color=theme.ink, lw=1.4, ls=(0, (4, 2)), label=training),
    ]


def _legend(axes: Axes, theme: Theme, handles: Sequence[Line2D]) -> None:
    look: dict[str, Any] = {"facecolor": theme.paper, "edgecolor": "none", "framealpha": 0.8, "labelcolor": theme.ink}
    axes.legend(handles=list(handles), fontsize=10, frameon=True, **look)


def lambda_init(settings: Mapping[str, Any], block: int) -> float | None:
    """The constant that a block's lambda starts around (arXiv 2410.05258, section 2.1), from the model's settings.

    ``block`` counts from 0; None where the attention has no such constant.
    """
    if settings["attention"] not in FROM_LAMBDA_INIT:
        return None
    own = settings.get("lambda_init")
    return 0.8 - 0.6 * math.exp(-0.3 * block) if own is None else float(own)


def lambdas(arm: Arm, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Lambda of every block against the epoch in the arm's first run; dashed, where it started near it, lambda_init."""
    rows = [row for row in arm.records[0].epochs if row.get("lambda")]
    label = arm.label if len(arm.records) == 1 else f"{arm.label}, seed {arm.records[0].row['seed']}"
    depth, row = len(rows[0]["lambda"]), arm.records[0].row
    starts = [lambda_init({**row, "lambda_init": row.get("model.lambda_init")}, block) for block in range(depth)]
    made = figure(theme, 6.4, 4.5)
    axes = made.subplots()
    shades = colormaps["viridis"]
    for block in range(depth):
        share = block / max(depth - 1, 1)
        shade = shades(theme.first_shade + share * (theme.last_shade - theme.first_shade))
        if (start := starts[block]) is not None:
            axes.axhline(start, color=shade, linewidth=1.1, linestyle=(0, (4, 3)), alpha=0.8)
        axes.plot(
            [row["epoch"] for row in rows],
            [row["lambda"][block] for row in rows],
            color=shade,
            linewidth=2.2,
            marker="o" if len(rows) <= _FEW_EPOCHS else None,
            markersize=4.5,
            label=f"block {block}",
        )
    dress(axes, theme, title=f"Lambda per block: {label}", x="epoch", y="lambda (weight of the second map)")
    _epoch_axis(axes, len(rows))
    dashed = [Line2D([], [], color=theme.ink, lw=1.1, ls=(0, (4, 3)), label="lambda_init")] * (starts[0] is not None)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "labelcolor": theme.ink}
    axes.legend(handles=[*axes.get_legend_handles_labels()[0][::-1], *dashed], fontsize=10, frameon=False, **place)
    return to_png(made, stamp)


def confusion(arm: Arm, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Confusion matrix as the share of each true class, percent; shades stretch the low end, where the errors are."""
    counts = arm.confusion
    classes = arm.classes or [str(place) for place in range(len(counts))]
    order = reading_order(classes)
    shares = [[100 * counts[row][column] / max(sum(counts[row]), 1) for column in order] for row in order]
    size = len(shares)
    made = figure(theme, 6.2, 6.0)
    axes = made.subplots()
    shades: Any = colormaps[theme.heat]
    norm: Any = PowerNorm(0.4, vmin=0, vmax=100)
    axes.imshow(shares, cmap=shades, norm=norm)
    dress(axes, theme, title=f"Confusion, % of each true class: {arm.label}", x="predicted", y="true", grid=False)
    step = max(1, math.ceil(size / 25))
    ticks = range(0, size, step)
    names = [classes[order[index]] for index in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    if size <= 12:
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                red, green, blue, _ = shades(norm(value))
                bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
                text = f"{value:.0f}" if value >= 1 else "<1"
                shade = "#111820" if bright else "#ffffff"
                if value:  # outside the layout, which would measure each of them
                    at_centre: Any = {"ha": "center", "va": "center", "fontsize": 10, "color": shade}
                    axes.text(column, row, text, **at_centre).set_in_layout(False)
    return to_png(made, stamp)


def per_class(grouped: Sequence[Arm], *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Accuracy of every class as bars, one colour per arm; sorted by the first arm, the easiest class on top."""
    labels, classes = [arm.label for arm in grouped], grouped[0].classes
    accuracies = [arm.class_accuracies for arm in grouped]
    order = sorted(range(len(classes)), key=lambda index: accuracies[0][index] or 0.0)
    thick = 0.8 / len(labels)
    made = figure(theme, 6.4, max(2.6, 1.3 + len(classes) * (0.16 + 0.15 * len(labels)) + 0.15 * len(labels)))
    axes: Any = made.subplots()
    for run, label in enumerate(labels):
        values = [100 * (accuracies[run][index] or 0.0) for index in order]
        places = [place + 0.4 - (run + 0.5) * thick for place in range(len(order))]
        axes.barh(places, values, height=thick * 0.9, color=colour(theme, run), label=label)
    dress(axes, theme, title="Accuracy of each class", x="test images right", y="")
    axes.set_yticks(range(len(order)), [classes[index] for index in order])
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(False, axis="y")
    columns = 3 if max(len(label) for label in labels) < 14 else 1
    made.legend(fontsize=10, frameon=False, loc="outside lower left", ncols=columns, labelcolor=theme.ink)
    return to_png(made, stamp)
