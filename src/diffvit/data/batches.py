"""From pixels to batches: the order of samples, channel statistics, normalisation, evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from diffvit.data.random_draws import Stream, hash_words

Channels = Sequence[float] | Tensor  # a number for each
Device = torch.device | str
_CHUNK = 1 << 24  # bytes read at a time, so that a memory-mapped set is never in memory as a whole


def epoch_order(seed: int, epoch: int, n: int, balanced: Int64[Tensor, " n"] | None = None) -> Int64[Tensor, " n"]:
    """The order in which one epoch shows its ``n`` samples: a permutation that depends on (seed, epoch, n) alone.

    Sorting independent 64-bit keys gives every permutation the same chance (but for ties, one in about 2**64 / n**2).

    With ``balanced``, the samples' labels, each class that has any is drawn equally often in ``n`` draws (where ``n``
    is no multiple of their number, some once more, which ones depends on the epoch), and within a class every sample
    equally often, give or take one. It depends on the labels too.
    """
    keys = hash_words(seed, epoch, torch.arange(n), Stream.ORDER, 1 if balanced is None else 2)
    order = torch.argsort(keys[:, 0], stable=True)
    if balanced is None:
        return order
    members = [order[balanced[order] == label] for label in balanced.unique()]
    first = epoch % len(members)  # the class from which on some are drawn once more
    drawn = []
    for place, each in enumerate(members):
        count = n // len(members) + ((place - first) % len(members) < n % len(members))
        drawn.append(each.repeat(-(-count // len(each)))[:count])
    return torch.cat(drawn)[torch.argsort(keys[:, 1], stable=True)]


def channel_statistics(
    pixels: UInt8[Tensor, "n chans height width"],
) -> tuple[Float32[Tensor, " chans"], Float32[Tensor, " chans"]]:
    """Mean and standard deviation of each channel, in 0 .. 1, from exact integer sums.

    A channel without any variation gets the standard deviation 1, so that dividing by it is harmless.
    """
    channels = pixels.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in pixels.split(max(1, _CHUNK // max(1, pixels[:1].numel()))):
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return mean.float(), std.float()


def normalise(
    pixels: UInt8[Tensor, "batch chans height width"], mean: Channels, std: Channels
) -> Float32[Tensor, "batch chans height width"]:
    """``(pixels / 255 - mean) / std`` for each channel; mean and standard deviation in 0 .. 1."""
    offset, scale = (torch.as_tensor(v, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for v in (mean, std))
    return pixels.to(torch.float32).sub_(offset * 255).mul_(1 / (scale * 255))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy from main memory is queued there and not waited for."""
    here = tensor.device.type == "cpu"
    if here and device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory the copy would be waited for
    return tensor.to(device, non_blocking=here)


def evaluation_batches(
    pixels: UInt8[Tensor, "n chans height width"],
    batch_size: int,
    mean: Channels,
    std: Channels,
    device: Device = "cpu",
) -> Iterator[Float32[Tensor, "batch chans height width"]]:
    """Every image once, in order, normalised, on ``device``; the last batch may be smaller."""
    device = torch.device(device)
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
    for chunk in pixels.split(batch_size):
        yield normalise(send(chunk, device), mean, std)
