"""A profile of training steps in words, tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.results import Result, stamp
from diffvit.reporting import markdown
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, plain, to_png
from diffvit.reporting.tables import NONE, Table
from tools.speed_words import counted, measured_on, products

IDLE = "none runs"
_LABELLED = 0.04  # of the step: shares from here on are named in the picture
NOTE = (
    "A step of the recipe on its own data, as `diffvit train` runs it: the next batch is made, forward and backward "
    "pass, update. Phases: median with its interval, on the clock of the device that does the work. Operations: ten "
    "more steps under torch's profiler, which slows them a little; kernels on CUDA, on a CPU an operation's own time "
    f"without those it calls. *{IDLE}*: the device waits, or Python is between two operations. Products: matrix "
    "products and convolutions, the optimiser's own included. MFU: FLOPs of a step (three forward passes) per second, "
    "over the rate of a large matrix product in the same dtype."
)


def section(result: Result) -> list[str]:
    """The report's paragraphs below the heading."""
    how = result["settings"]
    often = f"{counted(how['steps'], 'step')} timed and {how['profiled']} profiled after {how['warmup']} to warm up"
    parts = [measured_on(result, often), NOTE, products(result), markdown.table(overview(result))]
    for arm in result["arms"]:
        parts += [f"### {arm['model']}, `{arm['recipe']}`", markdown.table(kinds(arm)), markdown.table(operations(arm))]
    return parts


def overview(result: Result) -> Table:
    """A recipe in each row: its step and the phases of it."""
    phases = [phase["phase"] for phase in result["arms"][0]["phases"]]
    rows = []
    for arm in result["arms"]:
        mfu = NONE if arm["mfu"] is None else f"{100 * arm['mfu']:.0f}%"
        name = f"{arm['recipe']} ({arm['model']}, {arm['precision']}{', compiled' if arm['compiled'] else ''})"
        of_phase = [f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in arm["phases"]]
        rate = f"{arm['images_per_second']:,.0f}"
        rows.append([name, str(arm["batch_size"]), f"{arm['milliseconds']:.2f}", rate, mfu, *of_phase])
    return Table(["Recipe", "Batch", "ms per step", "Images/s", "MFU", *(f"{phase}, ms" for phase in phases)], rows)


def kinds(arm: Mapping[str, Any]) -> Table:
    """What the device worked on, by kind of operation, the costliest first, and how long on nothing."""
    wall = arm["profiled_milliseconds"]
    rows = [[kind["kind"], *_spent(kind, wall)] for kind in arm["kinds"] if kind["calls"]]
    return Table(
        ["Operations", "ms per step", "Share", "Calls per step"], [*rows, [IDLE, *_cells(arm["idle"], wall), NONE]]
    )


def operations(arm: Mapping[str, Any]) -> Table:
    """The costliest operations one by one."""
    wall = arm["profiled_milliseconds"]
    rows = [[f"`{row['operation'][:70]}`", row["kind"], *_spent(row, wall)] for row in arm["operations"]]
    return Table(["Costliest", "Kind", "ms per step", "Share", "Calls per step"], rows)


def _spent(row: Mapping[str, Any], wall: float) -> list[str]:
    return [*_cells(row["milliseconds"], wall), f"{row['calls']:,.0f}"]


def _cells(milliseconds: float, wall: float) -> list[str]:
    return [f"{milliseconds:.2f}", f"{100 * milliseconds / wall:.0f}%"]


def draw(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """A bar per recipe, cut by kind of operation; PNG."""
    arms, of = result["arms"], result["environment"]
    worked = (kind for arm in arms for kind in arm["kinds"] if kind["calls"])
    names = list(dict.fromkeys(kind["kind"] for kind in worked))
    made = figure(theme, 9.6, 1.9 + 0.75 * len(arms))
    axes: Any = made.subplots()
    for place, arm in enumerate(arms):
        wall, left = arm["profiled_milliseconds"], 0.0
        spent = {kind["kind"]: kind["milliseconds"] for kind in arm["kinds"]}  # all kinds, in every arm
        for shade, name in enumerate([*names, IDLE]):
            width = 100 * (arm["idle"] if name == IDLE else spent[name]) / wall
            tint = theme.faint if name == IDLE else colour(theme, shade)
            axes.barh(-place, width, left=left, height=0.62, color=tint, label=name if place == 0 else None)
            if width >= 100 * _LABELLED:
                ink = theme.ink if name == IDLE else theme.paper
                axes.text(left + width / 2, -place, f"{width:.0f}%", ha="center", va="center", color=ink, fontsize=10.5)
            left += width
    labels = [f"{plain(arm['recipe'])}\n{arm['model']}, {arm['milliseconds']:.3g} ms a step" for arm in arms]
    axes.set_yticks([-place for place in range(len(arms))], labels)
    x = f"share of the step, % ({of['hardware']}, {of['device']}, {counted(of['threads'], 'thread')})"
    dress(axes, theme, title="Where a training step's time goes", x=x, y="")
    axes.grid(False, axis="y")
    axes.set_xlim(0, 100)
    legend = made.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10.5, handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return to_png(made, stamp(result))
