"""Saliency maps without any model: of brightness, contrast or place. A map of a model that is no better says nothing.

On data with masks :func:`table` scores all of them. Where one finds the objects, so would a model that does not look.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diffvit.attention.metrics import coverage, mass_on_object, overlap, pointing_game
from diffvit.data.images import Images

Maps = Float[Tensor, "n rows columns"]
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
PATCH = 4  # pixels
SHARE = 0.5  # of the mass, that the overlap's threshold keeps


def by_place(count: int, grid: tuple[int, int], seed: int = 0) -> dict[str, Maps]:
    """Maps that do not depend on the image: ``uniform``; ``centre``, a Gaussian in the middle; ``random``."""
    rows, columns = grid
    down = (torch.arange(rows) + 0.5) / rows - 0.5
    across = (torch.arange(columns) + 0.5) / columns - 0.5
    middle = torch.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 0.25**2))
    draws = torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    return {"uniform": torch.ones(count, rows, columns), "centre": middle.expand(count, -1, -1), "random": draws}


def of_images(images: Images, grid: tuple[int, int]) -> dict[str, Maps]:
    """Maps of the pixels alone, each the mean of a quantity over a patch.

    Brightness (luma) and its negative, ``darkness``; ``saturation``, the largest channel less the smallest; the
    Euclidean distance to the image's median colour; ``local contrast``, the standard deviation within a patch; the
    gradient's magnitude by Sobel's filters; the spectral residual of the luma (Hou and Zhang, CVPR 2007,
    doi.org/10.1109/CVPR.2007.383267, section 2), smoothed with a Gaussian of 1.5 pixels.
    """
    pixels = images.pixels.float() / 255
    pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
    luma = torch.einsum("nchw,c->nhw", pixels, torch.tensor(_LUMA))
    median = pixels.flatten(2).quantile(0.5, dim=2)[..., None, None]
    maps = {
        "brightness": luma,
        "darkness": 1 - luma,
        "saturation": pixels.amax(dim=1) - pixels.amin(dim=1),
        "distance to the median": (pixels - median).square().sum(dim=1).sqrt(),
        "Sobel": _sobel(luma),
        "spectral residual": _spectral_residual(luma),
    }
    found = {name: coverage(values, grid) for name, values in maps.items()}
    rows, columns = grid
    patches = pixels.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # n chans rows tall columns wide
    return {**found, "local contrast": patches.std(dim=(3, 5), correction=0).mean(dim=1)}


def _sobel(luma: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    filters = torch.stack([across, across.T])[:, None]
    return F.conv2d(F.pad(luma[:, None], (1, 1, 1, 1), mode="reflect"), filters).norm(dim=1)


def _spectral_residual(luma: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    spectrum = torch.fft.fft2(luma)
    amplitude = spectrum.abs().clamp_min(1e-8).log()
    mean = F.avg_pool2d(F.pad(amplitude[:, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[:, 0]
    residual = torch.fft.ifft2(torch.polar((amplitude - mean).exp(), spectrum.angle())).abs().square()
    bell = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.5**2))
    bell = bell / bell.sum()
    return F.conv2d(F.pad(residual[:, None], (4, 4, 4, 4), mode="reflect"), torch.outer(bell, bell)[None, None])[:, 0]


def table(images: Images, train: Images, patch: int = PATCH) -> dict[str, dict[str, float]]:
    """Pointing game, mass on the object and overlap of every baseline, means over the images, best pointing first.

    Beside the maps of :func:`by_place` and :func:`of_images` the mean mask of the objects in ``train``. A uniform map
    scores the object's share of the image.
    """
    grid = (images.pixels.shape[2] // patch, images.pixels.shape[3] // patch)
    assert images.masks is not None
    assert train.masks is not None
    mean = coverage(train.masks.float().mean(dim=0, keepdim=True), grid)
    maps = {**of_images(images, grid), **by_place(len(images), grid), "mean mask": mean.expand(len(images), -1, -1)}
    scores = {name: mask_scores(saliency, images.masks) for name, saliency in maps.items()}
    rows = {name: {key: float(each.mean()) for key, each in found.items()} for name, found in scores.items()}
    return dict(sorted(rows.items(), key=lambda each: -each[1]["pointing"]))


def mask_scores(saliency: Maps, masks: Bool[Tensor, "n h w"]) -> dict[str, Float[Tensor, " n"]]:
    """Pointing game, mass on the object, and overlap at half the mass, per image."""
    cover = coverage(masks, (saliency.shape[1], saliency.shape[2]))
    return {
        "pointing": pointing_game(saliency, cover),
        "mass": mass_on_object(saliency, cover),
        "iou": overlap(saliency, cover, SHARE),
    }
