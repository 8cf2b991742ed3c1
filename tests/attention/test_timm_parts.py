"""Parts of timm's models that ours lacks: refused by name, before anything is fetched."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
from timm.layers import RmsNorm, SwiGLU
from timm.models.vision_transformer import DiffAttention, VisionTransformer
from torch import nn

from diffvit.attention.pretrained import load_pretrained
from diffvit.attention.timm_parts import settings_of_timm
from diffvit.errors import InputError

BUILT: list[tuple[dict[str, Any], str]] = [
    ({"pre_norm": True}, "norm_pre = LayerNorm"),
    ({"global_pool": "map"}, "attn_pool = AttentionPoolLatent"),
    ({"global_pool": "avgmax"}, "global_pool is 'avgmax'"),
    ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
    ({"mlp_layer": SwiGLU}, "blocks.0.mlp = SwiGLU"),
    ({"scale_attn_norm": True}, "blocks.0.attn.norm = LayerNorm"),
    ({"scale_mlp_norm": True}, "blocks.0.mlp.norm = LayerNorm"),
    ({"act_layer": "quick_gelu"}, "blocks.0.mlp.act = QuickGELU"),
    ({"act_layer": "gelu_tanh"}, "blocks.0.mlp.act = GELUTanh"),
    ({"act_layer": partial(nn.GELU, approximate="tanh")}, "blocks.0.mlp.act = an approximate GELU"),
    ({"norm_layer": RmsNorm}, "blocks.0.norm1 = RmsNorm"),
    ({"final_norm": False}, "final_norm"),
    ({"patch_drop_rate": 0.5}, "patch_drop = PatchDropout"),
    ({"pos_embed": "none"}, "pos_embed"),
    ({"proj_bias": False}, "blocks.0.attn.proj has no bias"),
    ({"attn_layer": partial(DiffAttention, dual_lambda=True), "num_heads": 2}, "blocks.0.attn.lambda_a"),
    ({"img_size": (16, 32)}, "patch_embed"),
    ({"embed_norm_layer": "layernorm"}, "patch_embed.norm = LayerNorm"),
]


@pytest.mark.parametrize(("changed", "part"), BUILT)
def test_parts_that_ours_lacks_are_named(changed: dict[str, Any], part: str) -> None:
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    kind = changed.get("attn_layer")
    if isinstance(kind, partial):  # timm wants a class here
        changed = {**changed, "attn_layer": type("DiffAttention", (DiffAttention,), {"__init__": _dual})}
    model = VisionTransformer(**{**sizes, **changed})
    with pytest.raises(InputError) as caught:
        settings_of_timm("m", model)
    assert str(caught.value).startswith(f"m: has a part that is not supported: {part}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def _dual(self: Any, *args: Any, **more: Any) -> None:
    DiffAttention.__init__(self, *args, dual_lambda=True, **more)


def test_blocks_and_epsilons_that_differ_are_named() -> None:
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model: Any = VisionTransformer(**sizes)
    model.norm.eps = 1e-5
    with pytest.raises(InputError, match="norm has epsilon 1e-05"):
        settings_of_timm("m", model)
    model = VisionTransformer(**sizes)
    model.blocks[1] = VisionTransformer(**{**sizes, "num_heads": 2}).blocks[0]
    with pytest.raises(InputError, match=r"blocks\.1 differs from blocks\.0"):
        settings_of_timm("m", model)
    model = VisionTransformer(**sizes)
    model.blocks[0].attn.gate = nn.Linear(32, 32)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.gate = Linear"):
        settings_of_timm("m", model)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resnet18", "the model itself = ResNet"),
        ("swin_tiny_patch4_window7_224", "the model itself = SwinTransformer"),
        ("eva02_tiny_patch14_224", "the model itself = Eva"),
        ("deit_tiny_distilled_patch16_224", "the model itself = VisionTransformerDistilled"),
        ("vit_base_patch16_clip_quickgelu_224", "norm_pre = LayerNorm"),
        ("vit_small_patch16_18x2_224", "blocks.0 = ParallelThingsBlock"),
        ("vit_dpwee_patch16_reg1_gap_256", "blocks.0 = DiffParallelScalingBlock"),
        ("vit_small_r26_s32_224", "patch_embed = HybridEmbed"),
    ],
)
def test_models_that_ours_is_not_are_refused_before_a_download(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def fetch(name: str, pretrained: bool) -> Any:
        assert not pretrained
        return create(name)

    monkeypatch.setattr(timm, "create_model", fetch)
    with pytest.raises(InputError) as caught:
        load_pretrained(name)
    assert str(caught.value).startswith(f"{name}: has a part that is not supported: {part}")
    assert caught.value.exit_code == 3
