"""Look at pictures through a model's eyes: figures, and one self-contained page that explains them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from diffvit.attention import figures, head_figures
from diffvit.attention.capture import Record, capture
from diffvit.attention.heads import HeadStatistics, averaged, head_statistics
from diffvit.attention.maps_file import maps_file
from diffvit.attention.metrics import HIT, coverage, mass_mask, mass_on_object, pointing_game
from diffvit.attention.page import Drawn, page_of
from diffvit.attention.positions import position_similarity
from diffvit.attention.rollout import rollout
from diffvit.attention.subject import Picture, Subject
from diffvit.errors import ConfigError
from diffvit.files import disk_faults, replace
from diffvit.reporting import plots
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import read_run
from diffvit.reporting.style import plain, to_png, to_svg

FORMATS = ("png", "svg", "npz")
PAGE = "index.html"


@dataclass(frozen=True)
class Wanted:
    """What to draw.

    Args:
        layers: which blocks; None for all.
        kind: which map of a differential head: ``effective``, ``positive`` or ``negative``.
        query: row and column of the patch that asks; None for what the model pools.
        rollout: whether to follow attention through the layers.
        rules: the arguments of :func:`diffvit.attention.rollout.rollout`.
        mass: share of the mass that a threshold mask keeps; None for no masks.
        form: ``png``, ``svg``, or ``npz``: the maps themselves, for other programs.
    """

    layers: list[int] | None = None
    kind: str = "effective"
    query: tuple[int, int] | None = None
    rollout: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    mass: float | None = None
    form: str = "png"


@dataclass(frozen=True)
class Look:
    """What was written.

    Args:
        page: the HTML page.
        files: the others, beside it.
        pictures: per picture, plain values: its ``name``, ``label``, ``prediction`` and ``probability`` where the
            model classifies, ``pointing`` and ``mass`` of the last layer's map where the object's mask is known.
    """

    page: Path
    files: list[Path]
    pictures: list[dict[str, Any]]


def look(subject: Subject, pictures: Sequence[Picture], wanted: Wanted, out: Path, *, command: str = "") -> Look:
    """Draw every picture's maps, what holds for all of them, and the page.

    Args:
        subject: the model.
        pictures: at least one.
        wanted: what to draw.
        out: folder for the page and its files; what lies there under the same names is replaced.
        command: to repeat it, for the page.

    Raises:
        ConfigError: nothing to look at, an unknown format, layer, kind or query, or settings of rollout without a
            meaning.
        EnvironmentFault: a file cannot be written.
    """
    if not pictures:
        raise ConfigError(
            "attention", "no image given", "Name image files, or take some of the test set with --index 0-7."
        )
    if wanted.form not in FORMATS:
        raise ConfigError("--format", f"no such format (found {wanted.form!r} vs {', '.join(FORMATS)})")
    writer = _Writer(out, wanted.form)
    sections, found, statistics, sheet, heat, tokens = [], [], [], [], "", 0
    for number, picture in enumerate(pictures):
        record = capture(subject.model, subject.normalised(picture.pixels[None]), layers=wanted.layers)
        facts = _facts(subject, picture, record)
        found.append(facts)
        statistics.append(head_statistics(record))
        title, heats = _title(facts), _heats(record, wanted)
        name = f"{number:02d}-{_safe(picture.name)}"
        sections.append((title, _one_picture(writer, name, picture, record, wanted, title, heats)))
        sheet.append((plain(title), picture.pixels, heats[-1][1]))
        heat, tokens = heats[-1][0], record.prefix + record.grid[0] * record.grid[1]
    common = _for_all(writer, subject, sheet, heat, averaged(statistics), tokens)
    text = page_of(subject, wanted.query, wanted.rollout, sections, common, command)
    writer.save(PAGE, text.encode())
    *files, page = writer.files
    return Look(page, files, found)


class _Writer:
    """Saves figures in the chosen form and keeps what the page shows."""

    def __init__(self, out: Path, form: str) -> None:
        self.out, self.form = out, form
        self.files: list[Path] = []

    def figure(self, name: str, made: Figure, alt: str, text: str = "") -> Drawn:
        """One figure, for the page and, but with ``npz``, as a file."""
        if self.form == "svg":
            return self.keep(f"{name}.svg", to_svg(made), "image/svg+xml", alt, text)
        return self.keep(f"{name}.png", to_png(made), "image/png", alt, text)

    def keep(self, name: str, content: bytes, mime: str, alt: str, text: str = "") -> Drawn:
        """The same of a drawn picture."""
        if self.form != "npz":
            self.save(name, content)
        return Drawn(alt, text, f"data:{mime};base64,{base64.b64encode(content).decode()}")

    def save(self, name: str, content: bytes) -> None:
        """One file."""
        path = self.out / name
        with disk_faults(path):
            self.out.mkdir(parents=True, exist_ok=True)
            replace(path, content)
        self.files.append(path)


def _facts(subject: Subject, picture: Picture, record: Record) -> dict[str, Any]:
    """What is known of a picture, and what the model says of it."""
    facts: dict[str, Any] = {"name": picture.name, "label": picture.label}
    if subject.classes:
        assert isinstance(subject.model, nn.Module)
        device = subject.model.patch_embed.proj.weight.device
        with torch.no_grad():
            chances = subject.model(subject.normalised(picture.pixels[None]).to(device)).float().softmax(dim=1)[0]
        best = int(chances.argmax())
        facts |= {"prediction": subject.classes[best], "probability": float(chances[best])}
    if picture.mask is not None:
        heat = record.to_patches(-1).mean(dim=1)
        cover = coverage(picture.mask[None], record.grid).to(heat.dtype)
        facts |= {"pointing": float(pointing_game(heat, cover)), "mass": float(mass_on_object(heat, cover))}
    return facts


def _title(facts: dict[str, Any]) -> str:
    said = f", predicted {facts['prediction']} ({facts['probability']:.0%})" if "prediction" in facts else ""
    return f"{facts['name']}{': ' + facts['label'] if facts['label'] else ''}{said}"


def _safe(name: str) -> str:
    """A file name from a picture's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:60]


def _heats(record: Record, wanted: Wanted) -> list[tuple[str, Tensor]]:
    """What is laid over the picture: (name, (rows, columns)); the last one stands for the picture in the overview."""
    last = record.to_patches(-1, wanted.kind, wanted.query)[0].mean(dim=0)
    asker = "" if wanted.query is None else f", patch {wanted.query[0]},{wanted.query[1]}"
    found = [(f"layer {record.blocks[-1]}, mean over heads{asker}", last)]
    if wanted.rollout:
        rules = wanted.rules
        sign = f" ({rules.get('sign', 'clamp')})" if record.differential else ""
        found.append((f"rollout{sign}", rollout(record, **rules)[0]))
    return found


def _one_picture(
    writer: _Writer,
    name: str,
    picture: Picture,
    record: Record,
    wanted: Wanted,
    title: str,
    heats: Sequence[tuple[str, Tensor]],
) -> list[Drawn]:
    image, query, drawn_title = picture.pixels, wanted.query, plain(title)
    masks = []
    if wanted.mass is not None:
        masks = [(f"{wanted.mass:.0%} of the mass of\n{of}", mass_mask(heat, wanted.mass)) for of, heat in heats]
    if picture.mask is not None:
        masks.append(("the object's true mask", coverage(picture.mask[None], record.grid)[0] >= HIT))
    shown = figures.overlays(image, heats, masks=masks, title=drawn_title)
    drawn = [writer.figure(f"{name}-overlay", shown, f"Attention over the image: {title}")]
    grid = figures.maps_grid(record, 0, image, kind=wanted.kind, query=query, title=drawn_title)
    drawn.append(writer.figure(f"{name}-maps", grid, f"Attention map of every head and layer: {title}"))
    if record.differential:
        panels = figures.differential_panels(record, 0, image, query=query, title=drawn_title)
        alt = f"First map, lambda times the second, and their difference, of every head: {title}"
        drawn.append(writer.figure(f"{name}-differential", panels, alt))
    if wanted.mass is not None:
        kept = mass_mask(record.to_patches(-1, wanted.kind, query)[0], wanted.mass)
        what = f"{wanted.mass:.0%} of the mass of each head of layer {record.blocks[-1]}"
        heads = figures.kept_by_heads(image, kept, title=f"{drawn_title}: {what}")
        drawn.append(writer.figure(f"{name}-mass", heads, f"The patches that hold {what}: {title}"))
    if wanted.form == "npz":
        writer.save(f"{name}.npz", maps_file(record, heats[-1][1] if wanted.rollout else None))
    return drawn


def _for_all(
    writer: _Writer,
    subject: Subject,
    sheet: Sequence[tuple[str, Tensor, Tensor]],
    heat: str,
    statistics: Sequence[HeadStatistics],
    tokens: int,
) -> list[Drawn]:
    """The overview, and what holds for the model as a whole."""
    name = plain(subject.name)
    made = figures.contact_sheet(sheet, title=f"{heat}: {name}")
    drawn = [writer.figure("overview", made, "Every image beside its attention")]
    text = f"Averages over {len(sheet)} image{'s' if len(sheet) > 1 else ''} and over the patches that ask."
    made = head_figures.heads_figure(statistics, tokens, title=f"What the heads of {name} do")
    drawn.append(writer.figure("heads", made, "Entropy, distance and shares of every head, by layer", text))
    lambdas = {each.block: each.lam for each in statistics if each.lam is not None}
    if lambdas:
        made = head_figures.lambda_figure(lambdas, title=f"Lambda by layer: {name}")
        drawn.append(writer.figure("lambda", made, "Learned lambda of every layer beside its start"))
        drawn += _over_training(writer, subject)
    assert isinstance(subject.model, nn.Module)
    for kind, similarity in position_similarity(subject.model).items():
        made = head_figures.similarity_figure(similarity, title=f"Similarity of {kind} positions: {name}")
        text = "Each small map: how alike the position of that patch is to every patch's."
        drawn.append(writer.figure(f"positions-{kind}", made, f"Similarity of the {kind} position embeddings", text))
    return drawn


def _over_training(writer: _Writer, subject: Subject) -> list[Drawn]:
    """Lambda against the epoch, where the run folder tells; a PNG whatever the format."""
    if subject.folder is None or not (subject.folder / "result.json").is_file():
        return []
    content = plots.lambdas(arms([read_run(subject.folder)])[0])
    return [writer.keep("lambda-training.png", content, "image/png", "Lambda of every layer against the epoch")]
