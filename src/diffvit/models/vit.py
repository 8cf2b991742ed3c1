"""The Vision Transformer, from the patches to the logits, with timm's parameter names."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.errors import ConfigError, InputError, Size, check_choice, checked_size, sides, suggestion
from diffvit.models import pos_embed as positions
from diffvit.models.attention import NORMS, AttentionMaps, DifferentialAttention
from diffvit.models.init import initialise
from diffvit.models.pos_embed import Rope2d
from diffvit.models.presets import PRESETS
from diffvit.models.variants.split import SplitDifferentialAttention
from diffvit.registry import ATTENTION, FROM_LAMBDA_INIT


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each linearly (arXiv 2010.11929, equation 1).

    Args:
        image_size: side of a square input, or its height and width, pixels.
        patch_size: side of a patch, pixels.
        in_chans: input channels.
        dim: width of a token.

    Set ``any_size`` to take images of any height and width that the patch divides; ``grid`` is then the trained one.
    (Rotary positions are those of one size: see :meth:`VisionTransformer.set_input_size`.)

    Raises:
        ConfigError: ``patch_size`` does not divide ``image_size``.
    """

    def __init__(self, image_size: Size, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_chans, self.any_size = patch_size, in_chans, False
        self.set_size(image_size)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def set_size(self, image_size: Size) -> None:
        """Take images of this size; ConfigError where ``patch_size`` does not divide it."""
        height, width = sides(image_size)
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError("patch_size", f"{self.patch_size} does not divide image_size {image_size}")
        self.image_size, self.grid = image_size, (height // self.patch_size, width // self.patch_size)

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches dim"]:
        """Patches row by row, from the top left.

        Raises:
            InputError: the images have another size, number of channels or type than the model.
        """
        self.check(images)
        return self.proj(images).flatten(2).mT

    def check(self, images: Tensor) -> None:
        """Raise :class:`InputError` for images of another size, number of channels or type."""
        weights = self.proj.weight.dtype
        if not images.is_floating_point() or (images.dtype == torch.float64) != (weights == torch.float64):
            found, allowed = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, weights))
            hint = "For bytes: (images.float() / 255 - mean) / std, with the mean and std of the model's training."
            raise InputError("images", f"must be {allowed}, normalised per channel (found {found} vs {allowed})", hint)
        channels, height, width = images.shape[1:]
        found, side = f"{channels}x{height}x{width}", self.patch_size
        if self.any_size:
            if channels != self.in_chans or height % side or width % side or not height * width:
                allowed = f"{self.in_chans} channels, sides multiples of {side}"
                raise InputError("images", f"do not fit the model ({found} vs {allowed})")
        elif (channels, height, width) != (self.in_chans, *sides(self.image_size)):
            allowed = "x".join(map(str, (self.in_chans, *sides(self.image_size))))
            raise InputError("images", f"have another shape than the model ({found} vs {allowed})")


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the exact GELU (arXiv 2010.11929, section 3.1).

    Args:
        dim: width of the input.
        hidden: width between the two layers.
        out: width of the output.
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead out"]:
        """Apply the MLP to the last dimension."""
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drop a sample's residual branch with probability ``chance``.

    Kept branches are divided by ``1 - chance``, so that the expectation is unchanged.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, branch: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Drop whole samples at random; the identity in evaluation mode."""
        if not self.training or self.chance == 0.0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.chance
        return branch * (kept.to(branch.dtype) / (1.0 - self.chance))


class LayerScale(nn.Module):
    """A learnt factor per channel on a residual branch (arXiv 2103.17239, section 2), which starts at ``initial``."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, branch: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Scale a residual branch."""
        return branch * self.gamma


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and inside a residual branch (arXiv 2010.11929, equations 2 and 3).

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline.
        hidden: width of the MLP's hidden layer.
        attention: a name in :data:`diffvit.registry.ATTENTION`.
        layer_index: depth of the block, counted from 0.
        qkv_bias: bias on the query, key and value projection.
        qk_norm: norm on queries and keys: ``none``, ``layer`` or ``rms``.
        norm_eps: epsilon of the layer norms.
        drop_path: chance to drop a sample's residual branch.
        layer_scale: initial value of a learnt factor per channel on each residual branch; 0 for none.
        rope: rotary positions of the attention, if any.
        more: further arguments of the attention, by name.

    Raises:
        ConfigError: an unknown attention or norm, or one that refuses these sizes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        *,
        attention: str,
        layer_index: int,
        qkv_bias: bool = True,
        qk_norm: str = "none",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        rope: Rope2d | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTION)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn: Any = ATTENTION[attention].build(
            dim,
            num_heads,
            layer_index=layer_index,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            norm_eps=norm_eps,
            rope=rope,
            **more,
        )
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden, dim)
        self.ls1, self.ls2 = (LayerScale(dim, layer_scale) if layer_scale else nn.Identity() for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """One layer of the encoder."""
        return self.after(x, self.attn(self.norm1(x)))

    def after(
        self, x: Float[Tensor, "batch tokens dim"], attended: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Output of the layer from its input and what its attention gives for that."""
        x = x + self.drop_path(self.ls1(attended))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer (arXiv 2010.11929).

    ``state_dict`` moves to and from timm's ``VisionTransformer`` without renaming; ``pool="mean"`` is timm's
    ``class_token=False, global_pool="avg", fc_norm=False``, and timm's differential ``num_heads`` is half of ours.

    Args:
        image_size: side of a square input, or its height and width, pixels.
        patch_size: side of a square patch, pixels; divides ``image_size``.
        in_chans: input channels.
        num_classes: outputs of the head; 0 leaves the head out and gives the pooled features.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: heads of the softmax baseline; even for differential attention.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        attention: a name in :data:`diffvit.registry.ATTENTION`.
        pos_embed: ``none``, ``learned-1d``, ``learned-2d``, ``sincos-1d`` or ``sincos-2d``, added to the tokens;
            ``rope-2d``, which rotates queries and keys (:class:`diffvit.models.pos_embed.Rope2d`); or both, as in
            ``sincos-2d+rope-2d``.
        pool: ``cls`` (a [CLS] token) or ``mean`` (over the patches).
        head: ``linear``, or ``mlp`` with one hidden layer of width ``embed_dim``.
        qkv_bias: bias on the query, key and value projections.
        norm_eps: epsilon of the layer norms.
        drop_path: stochastic depth of the last block; rises linearly from 0 in the first.
        init: ``trunc-normal`` or ``mimetic``.
        init_std: deviation of the weights that start as a normal.
        qk_norm: norm on each head's queries and keys: ``none``, ``layer`` or ``rms``.
        layer_scale: initial value of a learnt factor per channel on each residual branch; 0 for none.
        registers: register tokens between [CLS] and the patches (arXiv 2309.16588).
        class_token: a [CLS] token before the patches; None has one exactly where ``pool`` is ``cls``.
        no_embed_class: [CLS] and the registers have no positions.
        fc_norm: the last norm acts after the pooling instead of before.
        lambda_init: differential attention's constant of lambda, in every layer; None has the published one of each.

    Raises:
        ConfigError: an unknown name, or sizes that do not go together.
    """

    def __init__(
        self,
        *,
        image_size: Size = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 6,
        mlp_ratio: float = 2.0,
        attention: str = "softmax",
        pos_embed: str = "learned-1d",
        pool: str = "cls",
        head: str = "linear",
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        init: str = "trunc-normal",
        init_std: float = 0.02,
        qk_norm: str = "none",
        layer_scale: float = 0.0,
        registers: int = 0,
        class_token: bool | None = None,
        no_embed_class: bool = False,
        fc_norm: bool = False,
        lambda_init: float | None = None,
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        image_size = settings["image_size"] = checked_size("image_size", image_size)
        self.settings: dict[str, Any] = settings
        # Set by diffvit.load: names of the outputs, and what makes an input of an image.
        self.classes: list[str] | None = None
        self.preprocess: Any = None
        _check_sizes(settings)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("head", head, ("linear", "mlp"))
        class_token = pool == "cls" if class_token is None else class_token
        if pool == "cls" and not class_token:
            raise ConfigError("pool", "cls needs a class token")
        self.pool = pool
        self.prefix = int(class_token) + registers
        self.no_embed_class = no_embed_class
        self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, embed_dim)
        self.grid: tuple[int, int] = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, embed_dim)) if registers else None
        positions.attach(self, pos_embed, self.grid, embed_dim, 0 if no_embed_class else self.prefix)
        rotary = pos_embed.endswith(positions.ROPE)
        rope = Rope2d(self.grid, embed_dim // num_heads, self.prefix) if rotary else None
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    num_heads,
                    int(embed_dim * mlp_ratio),
                    attention=attention,
                    layer_index=layer,
                    qkv_bias=qkv_bias,
                    qk_norm=qk_norm,
                    norm_eps=norm_eps,
                    drop_path=drop_path * layer / max(depth - 1, 1),
                    layer_scale=layer_scale,
                    rope=rope,
                    **({} if lambda_init is None else {"lambda_init": lambda_init}),
                )
                for layer in range(depth)
            )
        )
        self.norm = nn.Identity() if fc_norm else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if fc_norm else nn.Identity()
        self.head = _head(head, embed_dim, num_classes)
        initialise(self, init, init_std)

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; the pooled features where there is no head.

        Raises:
            InputError: the images have another size, number of channels or type than the model.
        """
        return self.forward_head(self.blocks(self.tokens(images)))

    def tokens(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Input of the first block: [CLS], registers, then the patches row by row, with their positions."""
        x = self.patch_embed(images)
        table = positions.table(self)
        grid = (images.shape[2] // self.patch_embed.patch_size, images.shape[3] // self.patch_embed.patch_size)
        table = table if table is None else positions.resample(table, self.grid, grid)
        if table is not None and self.no_embed_class:
            x = x + table
        before = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*before, x], dim=1) if before else x
        return x if table is None or self.no_embed_class else x + table

    def forward_head(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits from the tokens that leave the last block: norm, pooling, head."""
        x = self.norm(x)
        x = x[:, 0] if self.pool == "cls" else x[:, self.prefix :].mean(dim=1)
        return self.head(self.fc_norm(x))

    def set_input_size(self, image_size: Size) -> None:
        """Take images of another size from now on, as timm's method of this name; the weights stay as they are.

        Added positions are interpolated in every forward pass (:func:`diffvit.models.pos_embed.resample`), rotary ones
        are computed for the new grid. ``grid`` stays that of the position table, ``patch_embed.grid`` is the new one.

        Args:
            image_size: side of a square input, or its height and width, pixels.

        Raises:
            ConfigError: the patch does not divide it.
        """
        image_size = checked_size("image_size", image_size)
        self.patch_embed.set_size(image_size)
        self.settings["image_size"] = image_size
        for module in self.modules():
            if isinstance(module, Rope2d):
                module.set_grid(self.patch_embed.grid)

    def attention_maps(self, images: Float[Tensor, "batch chans height width"]) -> list[AttentionMaps]:
        """Every block's maps, first to last."""
        return encode_with_maps(self.blocks, self.tokens(images))[0]

    @torch.no_grad()
    def lambdas(self) -> list[float]:
        """Each layer's lambda, first to last; empty where it is no number of the layer's own."""
        kinds = (DifferentialAttention, SplitDifferentialAttention)
        found = [module.lam() for module in self.modules() if isinstance(module, kinds)]
        return [lam.item() for lam in found if lam.numel() == 1]


def encode_with_maps(
    blocks: nn.Sequential, x: Float[Tensor, "batch tokens dim"], wanted: Collection[int] | None = None
) -> tuple[list[AttentionMaps], Float[Tensor, "batch left dim"]]:
    """Run tokens through the blocks and collect their attention maps.

    Args:
        blocks: of a :class:`VisionTransformer`.
        x: what enters the first of them.
        wanted: blocks whose maps to take, counted from 0; by default all.

    Returns:
        The maps, first to last, and the tokens that leave the last block; where only some blocks are wanted, no block
        after the last of these is run, and the tokens are those that enter it.
    """
    every = range(len(blocks))
    wanted = every if wanted is None else wanted
    layers: list[AttentionMaps] = []
    for index in every:
        block: Any = blocks[index]
        if index in wanted:
            layers.append(block.attn.maps(block.norm1(x)))
        if index == max(wanted) and len(wanted) < len(every):
            break
        x = block(x)
    return layers, x


def create_model(preset: str, **overrides: Any) -> VisionTransformer:
    """Create a model from a preset, overriding settings of :class:`VisionTransformer`.

    Raises:
        ConfigError: no such preset or setting, or sizes that do not go together.
    """
    check_choice("preset", preset, PRESETS)
    known = inspect.signature(VisionTransformer).parameters
    for name in overrides:
        if name not in known:
            raise ConfigError(name, "no such model setting", suggestion(name, known))
    settings: dict[str, Any] = {**PRESETS[preset].settings, **overrides}
    return VisionTransformer(**settings)


def _head(kind: str, dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    return nn.Linear(dim, num_classes) if kind == "linear" else Mlp(dim, dim, num_classes)


def _check_sizes(settings: Mapping[str, Any]) -> None:
    check_choice("qk_norm", settings["qk_norm"], NORMS)
    whole = ("patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "registers")
    for name in whole:
        if not isinstance(settings[name], Integral):
            raise ConfigError(name, f"must be a whole number (found {settings[name]!r})")
    for name in ("mlp_ratio", "norm_eps", "drop_path", "layer_scale", "init_std"):
        if not isinstance(settings[name], Real):
            raise ConfigError(name, f"must be a number (found {settings[name]!r})")
    for name in whole:
        least = 0 if name in ("num_classes", "registers") else 1
        if settings[name] < least:
            raise ConfigError(name, f"must be at least {least} (found {settings[name]})")
    if int(settings["embed_dim"] * settings["mlp_ratio"]) < 1:
        raise ConfigError("mlp_ratio", f"leaves no hidden width (found {settings['mlp_ratio']})")
    if not settings["init_std"] > 0:
        raise ConfigError("init_std", f"must be above 0 (found {settings['init_std']})")
    if settings["lambda_init"] is not None and settings["attention"] not in FROM_LAMBDA_INIT:
        raise ConfigError("lambda_init", f"attention {settings['attention']} has none")
    if not 0.0 <= settings["drop_path"] < 1.0:
        raise ConfigError("drop_path", f"must be from 0 to below 1 (found {settings['drop_path']})")
