"""``diffvit data info`` and ``diffvit data fetch``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output
from diffvit.config import resolve, to_dict

if TYPE_CHECKING:
    from diffvit.data.images import Images

app = App(name="data", help_format="plaintext")


@app.command
def info(
    name: Annotated[str, Parameter(help="Data source.")],
    /,
    *,
    data_dir: DataDir = None,
    image_size: Annotated[int, Parameter(group=COMMAND, help="Side images are brought to, pixels.")] = 32,
    sheet: Annotated[Path | None, Parameter(group=COMMAND, help="Contact sheet; default NAME-sheet.png.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Show a data set's counts, classes, sizes and fingerprint, and draw a contact sheet (PNG)."""
    flags: dict[str, Any] = {"data": name, "model": {"image_size": image_size}}
    config = resolve(None, {**flags, "data_dir": data_dir} if data_dir else flags)

    from diffvit.data import sources
    from diffvit.data.images import contact_sheet
    from diffvit.reporting.tables import reading_order

    def load(split: str) -> Images:
        return sources.load(name, split, data_dir=config.data_dir, image_size=image_size, shapes=to_dict(config.shapes))

    splits = {split: load(split) for split in ("train", "test")}
    found = facts(splits)
    sheet = contact_sheet(splits["train"], sheet or Path(f"{name}-sheet.png"))
    show.pairs(
        {
            "data": found["name"],
            "pixels": " x ".join(str(side) for side in found["size"]),
            **{f"{split} images": f"{count:,}" for split, count in found["images"].items()},
            **{f"{split} fingerprint": digest for split, digest in found["fingerprint"].items()},
            "contact sheet": sheet,
        }
    )
    counts = found["per_class"]
    classes = found["classes"]
    rows = [[classes[place], *(f"{counts[split][place]:,}" for split in counts)] for place in reading_order(classes)]
    show.table(["class", *counts], rows)
    if output.json:
        show.as_json({**found, "contact_sheet": sheet})


def facts(splits: Mapping[str, Images]) -> dict[str, Any]:
    """What there is to say of a data set's splits, ready for JSON."""
    first = next(iter(splits.values()))
    classes = len(first.classes)
    return {
        "name": first.name,
        "classes": first.classes,
        "size": [int(side) for side in first.pixels.shape[1:]],
        "images": {split: len(images) for split, images in splits.items()},
        "fingerprint": {split: images.fingerprint for split, images in splits.items()},
        "per_class": {split: images.labels.bincount(minlength=classes).tolist() for split, images in splits.items()},
    }


@app.command
def fetch(
    name: Annotated[str, Parameter(help="Data set: cifar10.")],
    /,
    *,
    data_dir: DataDir = None,
    output: Output = OUTPUT,
) -> None:
    """Fetch a public data set over https, every file checked against its known SHA-256; what is here is kept."""
    from diffvit.data.download import fetch as download
    from diffvit.data.sources import place_of

    folder = download(name, place_of(name, data_dir), progress=_Bar(name))
    show.line(f"{name}  {folder}")
    if output.json:
        show.as_json({"name": name, "folder": folder})


class _Bar:
    """A line on standard error for every tenth of a download."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, -1

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != self.shown:
            self.shown = tenth
            print(f"{self.name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)
