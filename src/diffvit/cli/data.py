"""``diffvit data info`` and ``diffvit data fetch``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import OPTIONS, show
from diffvit.cli.options import OUTPUT, DataDir, Output
from diffvit.config import resolve, to_dict
from diffvit.errors import ConfigError, InputError
from diffvit.registry import SOURCES

app = App(name="data", help_format="plaintext", group_parameters=OPTIONS)


@app.command
def info(
    name: Annotated[str, Parameter(help="Data source, a data folder, or a CSV or JSON Lines file.")],
    /,
    *,
    data_dir: DataDir = None,
    image_size: Annotated[str, Parameter(help="Side or HEIGHT,WIDTH to resize to, pixels.")] = "32",
    test_size: Annotated[float, Parameter(help="Share set apart where there are no test images.")] = 0.2,
    sheet: Annotated[Path | None, Parameter(help="Contact sheet; default ./NAME-sheet.png.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Show a data set's counts, classes, sizes, unreadable files and fingerprint, and draw a contact sheet (PNG)."""
    if sheet and sheet.suffix.lower() != ".png":
        raise ConfigError(str(sheet), f"a contact sheet is a PNG (found {sheet.suffix or 'no ending'} vs .png)")
    if name not in SOURCES and ((place := Path(name)).exists() or os.sep in name):
        name, data_dir = "folder", place
    flags: dict[str, Any] = {"data": name, "test_size": test_size, "model": {"image_size": image_size}}
    config = resolve(None, {**flags, "data_dir": data_dir} if data_dir else flags)

    from diffvit.data import folder, sources
    from diffvit.data.images import contact_sheet
    from diffvit.reporting.tables import reading_order

    more = {"data_dir": config.data_dir, "image_size": config.model.image_size, "shapes": to_dict(config.shapes)}
    more |= {"test_size": test_size, "bad_files": "skip"}
    train = sources.load(name, "train", **more, announce=_tell)
    splits = {"train": train} | ({"validation": train.validation} if train.validation else {})
    try:
        splits["test"] = sources.load(name, "test", **more)
    except InputError as error:  # a folder with few images
        show.warn([error.line])
    classes, size = train.classes, [int(side) for side in train.pixels.shape[1:]]
    counts = {split: images.labels.bincount(minlength=len(classes)).tolist() for split, images in splits.items()}
    place = sources.place_of(name, config.data_dir) if name == "folder" else None
    title = place.resolve().stem if place else name
    said = {"data": train.name, "pixels": " x ".join(map(str, size))}
    found: dict[str, Any] = {"name": train.name, "classes": classes, "size": size, "per_class": counts}
    if place:
        found |= folder.summary(place, config.model.image_size)
        said |= {"layout": found["layout"], "files": found["sizes"], "bad files": f"{len(train.skipped):,}"}
        said["largest class"] = f"{max(counts['train']) / max(1, min(counts['train'])):.1f} times the smallest (train)"
    said |= {f"{split} images": f"{len(images):,}" for split, images in splits.items()}
    said |= {f"{split} fingerprint": images.fingerprint for split, images in splits.items()}
    show.pairs(said)
    rows = [[classes[place], *(f"{counts[split][place]:,}" for split in counts)] for place in reading_order(classes)]
    show.table(["class", *counts], rows)
    if splits.get("test", train).masks is not None:
        from diffvit.attention.baselines import PATCH, table
        from diffvit.attention.scores import METRICS

        found["baselines"] = table(splits["test"], train)
        of_maps = f"The objects found without a model, by patches of {PATCH} pixels"
        cells = [[name, *(f"{row[key]:.1%}" for key in METRICS)] for name, row in found["baselines"].items()]
        show.table(["map", *METRICS.values()], cells, title=of_maps)
    found |= {"contact_sheet": None, "bad_files": train.skipped}
    found["images"] = {split: len(images) for split, images in splits.items()}
    found["fingerprint"] = {split: images.fingerprint for split, images in splits.items()}
    try:
        found["contact_sheet"] = contact_sheet(train, sheet or Path(f"{title}-sheet.png"))
        show.line(f"contact sheet  {found['contact_sheet']}")
    finally:
        output.as_json(found)


def _tell(line: str) -> None:
    """Faults, and how far the reading is; the layout is shown with the rest."""
    if line.startswith(("warning:", "read")):
        print(line, file=sys.stderr, flush=True)


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
    output.as_json({"name": name, "folder": folder})
