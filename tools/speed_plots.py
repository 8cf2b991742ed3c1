"""The pictures of the speed report, each a function from a result to PNG bytes."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from benchmarks.results import Result, stamp
from benchmarks.settings import FAMILIES
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from tools.speed_words import counted

TITLES = {"train": "Training steps", "inference": "Inference"}


def throughput(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """Images per second of every model, a bar per dtype, its interval as a whisker; the most at the top is ours."""
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in result["arms"]))
    models = list(dict.fromkeys((arm["model"], arm["compiled"]) for arm in result["arms"]))
    thick = 0.8 / len(dtypes)
    made = figure(theme, 8.6, 1.6 + len(models) * (0.18 + 0.26 * len(dtypes)))
    axes: Any = made.subplots()
    longest = max(arm["high"] for arm in result["arms"])
    for arm in result["arms"]:
        shade = dtypes.index(arm["dtype"])
        place = -models.index((arm["model"], arm["compiled"])) + 0.4 - (shade + 0.5) * thick
        value = arm["images_per_second"]
        whisker = [[value - arm["low"]], [arm["high"] - value]]
        axes.barh(place, value, height=thick * 0.9, color=colour(theme, shade))
        axes.errorbar(value, place, xerr=whisker, color=theme.ink, lw=1.2, capsize=2.5)
        axes.text(arm["high"] + 0.012 * longest, place, f"{value:,.0f}", va="center", fontsize=10.5, color=theme.ink)
    how, of = result["settings"], result["environment"]
    title = (
        f"{TITLES[result['benchmark']]}: ViT {how['embed_dim']} wide, {how['depth']} blocks, batch {how['batch_size']}"
    )
    x = f"images per second ({of['hardware']}, {counted(of['threads'], 'thread')})"
    dress(axes, theme, title=title, x=x, y="")
    names = [f"{model}{', compiled' if compiled else ''}" for model, compiled in models]
    axes.set_yticks([-place for place in range(len(models))], names)
    axes.set_xlim(0, 1.1 * longest)
    axes.grid(False, axis="y")
    _legend(made, theme, axes, [(colour(theme, place), "-", dtype) for place, dtype in enumerate(dtypes)], square=True)
    return to_png(made, stamp(result))


def attention(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """Time of a training pass through the layer against the number of tokens, a panel per dtype, at one width."""
    width = shown_width(result)
    arms = [arm for arm in result["arms"] if arm["width"] == width and arm["passes"] == "forward+backward"]
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in arms))
    tokens = sorted({arm["tokens"] for arm in arms})
    lines = _lines(list(dict.fromkeys(arm["route"] for arm in arms)), theme)
    made = figure(theme, 11.6, 5.2)
    panels: Any = made.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        for route, (shade, style) in lines.items():
            of_route = {
                arm["tokens"]: arm["milliseconds"] for arm in arms if (arm["route"], arm["dtype"]) == (route, dtype)
            }
            places = [place for place, count in enumerate(tokens) if count in of_route]
            values = [of_route[tokens[place]] for place in places]
            thick = 2.8 if route in FAMILIES else 1.6
            axes.plot(places, values, color=shade, linestyle=style, linewidth=thick, marker="o", markersize=4.5)
        y = f"ms per step of about {result['settings']['tokens_per_step']:,} tokens" if axes is panels[0] else ""
        dress(axes, theme, title=f"Attention layer, {width} wide, {dtype}", x="tokens per image", y=y)
        axes.set_xticks(range(len(tokens)), [str(count) for count in tokens])
        axes.set_yscale("log")
    _plain_log(panels[0])
    _legend(made, theme, panels[0], [(shade, style, route) for route, (shade, style) in lines.items()])
    return to_png(made, stamp(result))


def shown_width(result: Result) -> int:
    """The middle one of the widths that were measured."""
    widths = sorted(result["settings"]["widths"])
    return widths[len(widths) // 2]


def _lines(routes: list[str], theme: Theme) -> dict[str, tuple[str, Any]]:
    """Colour and dash of each way: softmax solid, differential dashed, ours first."""
    differential = {"diffvit differential", *FAMILIES["diffvit differential"]}
    plain = [route for route in routes if route not in differential]
    dashed = [route for route in routes if route in differential]
    found: dict[str, tuple[str, Any]] = {route: (colour(theme, place), "-") for place, route in enumerate(plain)}
    return found | {route: (colour(theme, place), (0, (4, 2))) for place, route in enumerate(dashed)}


def _plain_log(axes: Any) -> None:
    """Times in plain figures, 1, 2, 5, 10, ...; for all panels, which share the axis."""
    low, high = axes.get_ylim()
    ticks = [factor * 10.0**power for power in range(-3, 5) for factor in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _legend(made: Any, theme: Theme, axes: Any, entries: list[tuple[str, Any, str]], *, square: bool = False) -> None:
    """One legend below all panels."""
    handles = [
        axes.plot(
            [], [], color=shade, linestyle="" if square else style, marker="s" if square else "o", lw=2.2, label=label
        )[0]
        for shade, style, label in entries
    ]
    legend = made.legend(
        handles=handles,
        fontsize=10.5,
        frameon=False,
        handlelength=3.2,
        loc="outside lower center",
        ncols=min(4, len(entries)),
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)
