"""A picture of a data set: one row per class, its first images side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from diffvit.data.images import Images
from diffvit.errors import ConfigError, EnvironmentFault

_LABEL, _GAP, _SIDE = 96, 4, 64  # pixels: width of the names, space between images, least side of an image
_MOST_CLASSES = 40


def contact_sheet(images: Images, path: Path, *, per_class: int = 10) -> Path:
    """Draw the first ``per_class`` images of each class (of the first 40 classes) and write them as PNG.

    Args:
        images: any data set.
        path: the file, its name ending in .png; an existing one is replaced.
        per_class: images in a row.

    Raises:
        ConfigError: the file's name does not end in .png.
        EnvironmentFault: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(str(path), f"a contact sheet is a PNG (found {path.suffix or 'no ending'} vs .png)")
    height, width = images.pixels.shape[2:]
    zoom = max(1, -(-_SIDE // max(height, width)))  # whole steps: a pixel stays a square
    column, row = width * zoom + _GAP, height * zoom + _GAP
    classes = images.classes[:_MOST_CLASSES]
    sheet = Image.new("RGB", (_LABEL + per_class * column, len(classes) * row + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for line, name in enumerate(classes):
        top = _GAP + line * row
        pen.text((_GAP, top + row // 2 - 8), name[:14], fill="black")
        for place, index in enumerate(torch.nonzero(images.labels == line)[:per_class, 0].tolist()):
            picture = Image.fromarray(images.pixels[index].permute(1, 2, 0).contiguous().numpy())
            picture = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (_LABEL + place * column, top))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise EnvironmentFault(str(path), f"cannot be written ({error.strerror or error})") from None
    return path
