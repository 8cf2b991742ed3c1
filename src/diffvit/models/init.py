"""Weight initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.errors import ConfigError, check_choice
from diffvit.models.attention import Attention


def initialise(model: nn.Module, scheme: str, std: float = 0.02) -> None:
    """Initialise the weights of a Vision Transformer by a scheme in :data:`SCHEMES`, drawing from torch's generator.

    ``std`` is the deviation of the weights that start as a normal.

    Raises:
        ConfigError: an unknown scheme.
    """
    check_choice("init", scheme, SCHEMES)
    SCHEMES[scheme](model, std)


def trunc_normal(model: nn.Module, std: float = 0.02) -> None:
    """Linear weights and positions from a normal of deviation ``std``, biases 0, [CLS] near 0, as timm's ViTs start.

    The patch projection keeps a convolution's own start (uniform, by its fan-in), as there; so do norms and lambdas.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.startswith("pos_embed") and "." not in name:  # a module of a user's own starts itself
            nn.init.trunc_normal_(parameter, std=std)
        elif name in ("cls_token", "reg_token"):
            nn.init.normal_(parameter, std=1e-6)


@torch.no_grad()
def mimetic(model: nn.Module, std: float = 0.02) -> None:
    """Mimetic initialisation: attention weights resemble trained ones (arXiv 2305.09828, section 4).

    Per head ``Wq Wk^T = 0.7 Z + 0.7 I``, cut to the head's rank; over all heads ``Wv Wproj = 0.4 Z - 0.4 I``; Z has
    independent normal entries of variance 1 / dim. In differential attention, each map of a pair.
    """
    trunc_normal(model, std)
    for module in model.modules():
        if isinstance(module, Attention):
            if not hasattr(module, "qkv"):
                why = "needs one projection of queries, keys and values, which this attention does not have"
                raise ConfigError("init mimetic", why, "Take init trunc-normal.")
            _mimetic_attention(module.qkv.weight, module.proj.weight, module.num_heads)


def _mimetic_attention(qkv: Tensor, proj: Tensor, num_heads: int) -> None:
    """Fill the (3 dim, dim) and (dim, dim) weights of one layer; linear layers hold their matrices transposed."""
    dim = len(proj)
    q, k, v = qkv.view(3, dim, dim)
    rank = dim // num_heads
    for head in range(num_heads):
        rows = slice(head * rank, (head + 1) * rank)
        left, right = _factors(0.7, 0.7, dim, rank)
        q[rows].copy_(left)
        k[rows].copy_(right)
    left, right = _factors(0.4, -0.4, dim, dim)
    v.copy_(left)
    proj.copy_(right.T)


def _factors(noise: float, identity: float, dim: int, rank: int) -> tuple[Tensor, Tensor]:
    """Two (rank, dim) matrices with ``left^T right`` the best rank-``rank`` fit of ``noise Z + identity I``."""
    target = noise * dim**-0.5 * torch.randn(dim, dim, dtype=torch.float64) + identity * torch.eye(dim)
    u, s, vh = torch.linalg.svd(target)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).T, root[:, None] * vh[:rank]


@torch.no_grad()
def whiten(proj: nn.Conv2d, images: Float[Tensor, "n chans height width"], seed: int) -> None:
    """Initialise the patch projection to whiten patches: outputs uncorrelated and of equal variance.

    Neighbouring pixels are so alike that most of a patch lies in a few directions; the others would be learnt late.
    With the patches' covariance ``E diag(l) E^T``, ``W = Q diag(l + 0.01 mean(l))^(-1/2) E^T``; Q has random
    orthonormal columns. The bias is 0. Where the width is less than a patch's values, the largest directions are kept.
    For convolutions the idea is of arXiv 2404.00498, section 3.2.

    Args:
        proj: the patch projection; keeps its device and dtype.
        images: normalised; some thousands are enough.
        seed: of Q.
    """
    patches = F.unfold(images, proj.kernel_size, stride=proj.stride).mT.flatten(0, 1).double().cpu()
    values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    weight = proj.weight
    kept = min(len(weight), len(values))
    values, directions = values[-kept:], directions[:, -kept:]
    drawn = torch.randn(len(weight), kept, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spread = torch.linalg.qr(drawn).Q
    scale = (values + _FLOOR * values.mean()).rsqrt()
    weight.copy_((spread * scale @ directions.T).view_as(weight))
    if proj.bias is not None:
        proj.bias.zero_()


_FLOOR = 0.01  # of the mean variance: directions that hold less are mostly noise, and are not blown up

SCHEMES: Mapping[str, Callable[[nn.Module, float], None]] = {"trunc-normal": trunc_normal, "mimetic": mimetic}
