"""The tab that lists the models, and says how to get more."""

from __future__ import annotations

import gradio

from diffvit.app.desk import Desk
from diffvit.app.models import Offer
from diffvit.app.panels import html_table
from diffvit.reporting.tables import Table

MORE = """
## Models of your own

| For | Command |
| --- | --- |
| a first pair in minutes | `make demo` |
| a ViT | `diffvit train --out runs/vit` |
| its differential twin | `diffvit train --model.attention differential --out runs/diffvit` |
| a small CLIP | `diffvit clip train configs/clip_cifar10.yaml --out runs/clip` |
| CIFAR-10 on this machine | `diffvit data fetch cifar10` |
| DINO's attention | `diffvit app --pretrained vit_small_patch16_224.dino` |

Runs under `runs/` are found when the page starts; `diffvit app --run runs/NAME` names them. The packaged
models were made by documented commands: each has a card that says which, beside its weights.
"""


def _origin(offer: Offer) -> str:
    if offer.pretrained:
        return "others"
    return "packaged" if offer.folder is None else "run"


def build(desk: Desk) -> None:
    """The tab."""
    rows = [[offer.name, offer.words, _origin(offer)] for offer in (*desk.models.lookers, *desk.models.clips)]
    gradio.HTML(html_table(Table(["Model", "What it is", "From"], rows), "Models that are offered"))
    gradio.Markdown(MORE)
