"""``diffvit bench train``, ``inference``, ``attention`` and ``profile``; the package's verb finds them here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from benchmarks.settings import (
    DTYPES,
    FOLDER,
    PEERS,
    TOKENS,
    WIDTHS,
    Choice,
    Grid,
    Rounds,
    Sizes,
    at_least_one,
    peers_of,
)
from diffvit.cli import OPTIONS, show
from diffvit.cli.options import OUTPUT, SWITCH, DeviceFlag, Output, numbers_of, refuse_folder, settings_of
from diffvit.config import resolve

app = App(name="bench", help_format="plaintext", group_parameters=OPTIONS)
ALL_TOKENS, ALL_WIDTHS = (",".join(map(str, numbers)) for numbers in (TOKENS, WIDTHS))
MODEL = Group("Model and batch, the same for all", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where a benchmark runs and where its results go."""

    device: DeviceFlag = None
    threads: Annotated[int | None, Parameter(show_default="0")] = None
    """CPU threads; 0 is all usable cores."""
    out: Path = FOLDER
    """Folder for the JSON, the plots and report.md."""
    quiet: Annotated[bool, SWITCH] = False
    """Show no progress."""

    def place(self) -> dict[str, Any]:
        """Device and threads for a benchmark's ``run``: flag > environment > default. Imports torch.

        Raises:
            EnvironmentFault: the device is not there, or the results could not be written.
        """
        refuse_folder(self.out)
        config = settings_of(device=self.device, threads=self.threads)

        from diffvit.training.environment import resolve_device

        return {"device": resolve_device(config.device), "threads": config.threads, "progress": self._progress}

    def _progress(self, done: int, total: int) -> None:
        if not self.quiet:
            print(f"{done} of {total}", file=sys.stderr, flush=True)


@Parameter(name="*")
@dataclass(frozen=True)
class Run(Place):
    """How a benchmark of models or layers runs, whatever it measures."""

    precision: Literal["both", "fp32", "bf16"] = "both"
    """bf16 is by autocast."""
    steps: int = 1
    """Steps per model and round."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What precision names."""
        return DTYPES if self.precision == "both" else (self.precision,)


@Parameter(name="*")
@dataclass(frozen=True)
class Compared:
    """Whom whole models are compared with."""

    peers: str = ",".join(PEERS)
    """Libraries to compare with, separated by commas, or none."""
    compiled: Annotated[bool, SWITCH] = False
    """Measure all under torch.compile too."""
    memory: Annotated[bool, Parameter(show_default="yes")] = True
    """Measure peak memory after the timing."""


Count = Annotated[int, Parameter(help="Timed rounds; each runs every model once.")]
Warmup = Annotated[int, Parameter(help="Warm-up rounds, discarded; the first step is discarded too.")]
Model = Annotated[Sizes, Parameter(name="*", group=MODEL)]
SIZES, PLACE, RUN, COMPARED = Sizes(), Place(), Run(), Compared()


@app.command
def train(
    *,
    rounds: Count = 10,
    warmup: Warmup = 1,
    compared: Compared = COMPARED,
    run: Run = RUN,
    model: Model = SIZES,
    output: Output = OUTPUT,
) -> None:
    """Whole training steps: forward, cross-entropy, backward, AdamW."""
    _models("train", model, rounds, warmup, compared, run, output)


@app.command
def inference(
    *,
    rounds: Count = 10,
    warmup: Warmup = 1,
    compared: Compared = COMPARED,
    run: Run = RUN,
    model: Model = SIZES,
    output: Output = OUTPUT,
) -> None:
    """Forward passes alone, in evaluation mode."""
    _models("inference", model, rounds, warmup, compared, run, output)


@app.command
def attention(
    *,
    rounds: Count = 6,
    warmup: Warmup = 0,
    peers: Annotated[str, Parameter(help="Library to compare with (only timm has these layers), or none.")] = "timm",
    tokens: Annotated[str, Parameter(help="Numbers of tokens, with commas.")] = ALL_TOKENS,
    widths: Annotated[str, Parameter(help="Widths of a token, with commas.")] = ALL_WIDTHS,
    tokens_per_step: Annotated[int, Parameter(help="Tokens in a step, about.")] = 4096,
    run: Run = RUN,
    output: Output = OUTPUT,
) -> None:
    """The attention layer alone: every way to compute it."""
    grid, how = (
        Grid(numbers_of("--tokens", tokens), numbers_of("--widths", widths), tokens_per_step),
        Rounds(rounds, run.steps, warmup),
    )
    choice, place = Choice(peers_of(peers), run.dtypes), run.place()

    from benchmarks.attention import run as measure
    from tools.speed import layer_ratios, shown_width

    result = measure(grid, how, choice, **place)
    shown = layer_ratios(result, shown_width(result))
    show.table(shown.columns, shown.rows)
    _keep(result, run.out, output)


@app.command
def profile(
    recipes: Annotated[list[Path] | None, Parameter(help="YAML files, as for diffvit train.")] = None,
    /,
    *,
    data: Annotated[str | None, Parameter(help="Other data than the recipes'.")] = None,
    steps: Annotated[int, Parameter(help="Timed steps; ten more are profiled.")] = 30,
    run: Place = PLACE,
    output: Output = OUTPUT,
) -> None:
    """Where the time of a recipe's training step goes: its phases, and the operations the device works on."""
    at_least_one(steps=steps)
    changes = {} if data is None else {"data": data}
    configs = [(path.name, resolve(path, changes)) for path in recipes or ()] or [("defaults", resolve(None, changes))]
    place = run.place()

    from benchmarks.profile import run as measure
    from tools.speed import overview

    result = measure(configs, steps=steps, **place)
    shown = overview(result)
    show.table(shown.columns, shown.rows)
    _keep(result, run.out, output)


def _models(kind: str, model: Sizes, rounds: int, warmup: int, compared: Compared, run: Run, output: Output) -> None:
    """Measure, print the two tables, write the files."""
    how = Rounds(rounds, run.steps, warmup)
    choice, place = Choice(peers_of(compared.peers), run.dtypes, compared.compiled), run.place()

    from benchmarks.throughput import run as measure
    from tools.speed import model_table, ratio_table, remarks

    result = measure(kind, model, how, choice, **place, memory=compared.memory)
    for shown in (model_table(result, intervals=False), ratio_table(result)):
        if shown.rows:
            show.table(shown.columns, shown.rows)
    for line in remarks(result):
        show.line(line.replace("*", ""))
    _keep(result, run.out, output)


def _keep(result: dict[str, Any], out: Path, output: Output) -> None:
    """Write the result and the report, and say where."""
    from diffvit.measuring import write
    from tools import pages, speed

    write(result, out)
    pages.update({Path(name): content for name, content in speed.of_folder(out).items()}, "speed", out, check=False)
    show.line(f"report  {out / 'report.md'}")
    output.as_json({**result, "report": out / "report.md"})
