"""``diffvit data info`` and ``diffvit data fetch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output
from diffvit.config import resolve, to_dict

app = App(name="data", help_format="plaintext")


@app.command
def info(
    name: Annotated[str, Parameter(help="Data source.")],
    /,
    *,
    data_dir: DataDir = None,
    image_size: Annotated[int, Parameter(group=COMMAND, help="Side length that images are resized to, pixels.")] = 32,
    sheet: Annotated[Path | None, Parameter(group=COMMAND, help="Contact sheet; default NAME-sheet.png.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Show a data set's counts, classes, sizes and fingerprint, and draw a contact sheet (PNG)."""
    flags: dict[str, Any] = {"data": name, "model": {"image_size": image_size}}
    config = resolve(None, {**flags, "data_dir": data_dir} if data_dir else flags)

    from diffvit.data import sources
    from diffvit.data.images import contact_sheet
    from diffvit.reporting.tables import reading_order

    more = {"data_dir": config.data_dir, "image_size": image_size, "shapes": to_dict(config.shapes)}
    splits = {split: sources.load(name, split, **more) for split in ("train", "test")}
    train = splits["train"]
    classes, size = train.classes, [int(side) for side in train.pixels.shape[1:]]
    counts = {split: images.labels.bincount(minlength=len(classes)).tolist() for split, images in splits.items()}
    sheet = contact_sheet(train, sheet or Path(f"{name}-sheet.png"))
    said = {"data": train.name, "pixels": " x ".join(map(str, size))}
    said |= {f"{split} images": f"{len(images):,}" for split, images in splits.items()}
    said |= {f"{split} fingerprint": images.fingerprint for split, images in splits.items()}
    show.pairs({**said, "contact sheet": sheet})
    rows = [[classes[place], *(f"{counts[split][place]:,}" for split in counts)] for place in reading_order(classes)]
    show.table(["class", *counts], rows)
    if output.json:
        found = {"name": train.name, "classes": classes, "size": size, "per_class": counts, "contact_sheet": sheet}
        found["images"] = {split: len(images) for split, images in splits.items()}
        found["fingerprint"] = {split: images.fingerprint for split, images in splits.items()}
        show.as_json(found)


@app.command
def fetch(
    name: Annotated[str, Parameter(help="Data set: cifar10.")], /, *, data_dir: DataDir = None, output: Output = OUTPUT
) -> None:
    """Download a public data set over https and check every file's SHA-256; existing files are kept."""
    from diffvit.data.download import fetch as download
    from diffvit.data.sources import place_of

    shown = set[int]()

    def print_tenths(done: int, total: int) -> None:
        """A line on standard error for every tenth of the download."""
        if (tenth := 10 * done // max(total, 1)) not in shown:
            shown.add(tenth)
            print(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)

    folder = download(name, place_of(name, data_dir), progress=print_tenths)
    show.line(f"{name}  {folder}")
    if output.json:
        show.as_json({"name": name, "folder": folder})
