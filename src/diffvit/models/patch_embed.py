"""Images to tokens: one linear layer on square patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError, InputError


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each linearly (arXiv 2010.11929, equation 1).

    The weights are those of a convolution with stride and kernel ``patch_size``, so that checkpoints move to and from
    timm; the product is that of a matrix, because patches do not overlap.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        in_chans: input channels.
        dim: width of a token.

    Raises:
        ConfigError: ``patch_size`` does not divide ``image_size``.
    """

    def __init__(self, image_size: int, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError("patch_size", f"{patch_size} does not divide image_size {image_size}")
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches dim"]:
        """Patches row by row, from the top left.

        Raises:
            InputError: the images have another size or another number of channels than the model, or are whole numbers.
        """
        return nn.functional.linear(self.patches(images), self.proj.weight.flatten(1), self.proj.bias)

    def patches(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches values"]:
        """The patches as rows of chans * patch_size^2 values; raises what :meth:`forward` raises."""
        self._check_type(images)
        self._check(images)
        side = self.patch_size
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return patches.flatten(3).flatten(1, 2)

    def _check_type(self, images: Tensor) -> None:
        weights = self.proj.weight.dtype
        if not images.is_floating_point() or (images.dtype == torch.float64) != (weights == torch.float64):
            found, allowed = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, weights))
            hint = "Of bytes: (images.float() / 255 - mean) / std, with the mean and std of the model's training."
            raise InputError("images", f"must be {allowed}, normalised per channel (found {found} vs {allowed})", hint)

    def _check(self, images: Tensor) -> None:
        expected = (self.in_chans, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            found = "x".join(map(str, images.shape[1:]))
            raise InputError("images", f"have another shape than the model ({found} vs {'x'.join(map(str, expected))})")
