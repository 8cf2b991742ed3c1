"""The same Vision Transformer from four libraries. Only here are the others' imported, and only when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.settings import DIFFERENTIAL, SOFTMAX, TIMM, TIMM_DIFFERENTIAL, Sizes
from diffvit.errors import EnvironmentFault
from diffvit.hub.libraries import import_torchvision
from diffvit.kernels import accelerate
from diffvit.models.vit import VisionTransformer


@contextmanager
def _needs(library: str) -> Iterator[None]:
    """Imports of a peer inside; one that fails is one clear line.

    Raises:
        EnvironmentFault: the library is not there, or does not work here.
    """
    try:
        import_torchvision()
        yield
    except (ImportError, RuntimeError) as error:
        why = f"cannot be imported ({' '.join(str(error).split())})"
        hint = "Install the peers with pip install 'diffvit[bench]', or choose among them with --peers."
        raise EnvironmentFault(library, why, hint) from error


def _ours(attention: str) -> Callable[[Sizes], nn.Module]:
    def build(sizes: Sizes) -> nn.Module:
        model = VisionTransformer(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            num_classes=sizes.num_classes,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_ratio=sizes.mlp_ratio,
            attention=attention,
        )
        accelerate(model)
        return model

    return build


def _timm(kind: str) -> Callable[[Sizes], nn.Module]:
    def build(sizes: Sizes) -> nn.Module:
        with _needs("timm"):
            from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
        return TimmVisionTransformer(
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            num_classes=sizes.num_classes,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads // 2 if kind == "diff" else sizes.num_heads,
            mlp_ratio=sizes.mlp_ratio,
            attn_layer=kind,
        )

    return build


def timm_differential_layer(dim: int, num_heads: int) -> nn.Module:
    """The differential attention of timm's first layer; ``num_heads`` counts as ours does, twice timm's.

    Raises:
        EnvironmentFault: timm is not there.
    """
    with _needs("timm"):
        from timm.layers.diff_attention import DiffAttention
    return DiffAttention(dim, num_heads=num_heads // 2, qkv_bias=True, depth=0)


def _vit_pytorch(sizes: Sizes) -> nn.Module:
    """No bias on queries, keys and values, but two norms more around the patch projection."""
    with _needs("vit-pytorch"):
        from vit_pytorch import ViT
    return ViT(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        num_classes=sizes.num_classes,
        dim=sizes.embed_dim,
        depth=sizes.depth,
        heads=sizes.num_heads,
        dim_head=sizes.embed_dim // sizes.num_heads,
        mlp_dim=int(sizes.embed_dim * sizes.mlp_ratio),
    )


class _Logits(nn.Module):
    """A transformers model that returns its logits alone, as every other model does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _transformers(sizes: Sizes) -> nn.Module:
    """With its default attention, SDPA, and no dropout (its default too); the classifier has no pooler."""
    with _needs("transformers"):
        from transformers import ViTConfig, ViTForImageClassification
    config = ViTConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=int(sizes.embed_dim * sizes.mlp_ratio),
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = sizes.num_classes
    return _Logits(ViTForImageClassification(config))


# Images (batch, 3, height, width) to logits (batch, classes); ours first, so that impossible sizes are refused by us.
MODELS: Mapping[str, Callable[[Sizes], nn.Module]] = {
    SOFTMAX: _ours("softmax"),
    DIFFERENTIAL: _ours("differential"),
    TIMM: _timm("attn"),
    TIMM_DIFFERENTIAL: _timm("diff"),
    "vit-pytorch": _vit_pytorch,
    "transformers": _transformers,
}


def models_of(peers: tuple[str, ...]) -> list[str]:
    """Names in :data:`MODELS`: ours, and those of the peers chosen."""
    return [name for name in MODELS if name.removesuffix(" differential") in ("diffvit", *peers)]


def build(name: str, sizes: Sizes) -> nn.Module:
    """A model on the CPU, in float32, with its library's own initialisation after ``torch.manual_seed(0)``.

    Raises:
        ConfigError: sizes that do not go together.
        EnvironmentFault: its library is not there.
    """
    torch.manual_seed(0)
    return MODELS[name](sizes)


def parameters_of(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())
