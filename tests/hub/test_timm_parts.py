"""timm's models that compute what ours cannot: refused by their first strange weight, or by their logits."""

from functools import partial

import pytest
import timm
from timm.layers import RmsNorm, SwiGLU
from timm.models.vision_transformer import DiffAttention, VisionTransformer
from timm_maps import random_everywhere
from torch import nn

from diffvit.errors import InputError
from diffvit.hub.pretrained import check_logits, fit, load_pretrained, settings_of_timm

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
LOGITS = "has a part that is not supported: timm's model gives other logits"


class DualLambda(DiffAttention):
    def __init__(self, *args, **more):
        super().__init__(*args, dual_lambda=True, **more)


BUILT = [
    ({"pre_norm": True}, "it lacks patch_embed.proj.bias"),
    ({"global_pool": "map"}, "it has the unexpected attn_pool."),
    ({"global_pool": "avgmax"}, LOGITS),
    ({"global_pool": "avg", "pool_include_prefix": True}, LOGITS),
    ({"mlp_layer": SwiGLU}, "no blocks.0.mlp.fc1.weight with 2 axes"),
    ({"scale_attn_norm": True}, "it has the unexpected blocks.0.attn.norm.bias and 3 more"),
    ({"scale_mlp_norm": True}, "it has the unexpected blocks.0.mlp.norm.bias and 3 more"),
    ({"act_layer": "quick_gelu"}, LOGITS),
    ({"act_layer": "gelu_tanh"}, LOGITS),
    ({"act_layer": partial(nn.GELU, approximate="tanh")}, LOGITS),
    ({"norm_layer": RmsNorm}, "it lacks blocks.0.norm1.bias"),
    ({"final_norm": False}, "it lacks norm.bias and 1 more"),
    ({"pos_embed": "none"}, "no pos_embed with 3 axes"),
    ({"proj_bias": False}, "it lacks blocks.0.attn.proj.bias"),
    ({"attn_layer": DualLambda, "num_heads": 2}, "it has the unexpected blocks.0.attn.lambda_a and 5 more"),
    ({"img_size": (16, 32)}, "pos_embed has the wrong size (1x9x32 vs 1x5x32)"),
    ({"embed_norm_layer": "layernorm"}, "it has the unexpected patch_embed.norm.bias"),
]


def compare(model):
    check_logits("m", model, fit("m", model.state_dict(), settings_of_timm("m", model)))


@pytest.mark.parametrize(("changed", "part"), BUILT)
def test_parts_that_ours_lacks_are_refused(changed, part):
    with pytest.raises(InputError) as caught:
        compare(random_everywhere(VisionTransformer(**{**SIZES, **changed}), spread=0.2))
    assert str(caught.value).startswith("m: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_blocks_that_differ_and_parts_put_in_by_hand_are_refused():
    in_training = {"patch_drop_rate": 0.5, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    compare(random_everywhere(VisionTransformer(**SIZES, **in_training)))  # these change no logit
    model = VisionTransformer(**SIZES)
    model.blocks[1] = VisionTransformer(**{**SIZES, "num_heads": 2}).blocks[0]
    with pytest.raises(InputError, match=LOGITS):
        compare(random_everywhere(model, spread=0.2))
    model = VisionTransformer(**SIZES)
    model.blocks[0].attn.gate = nn.Linear(32, 32)
    with pytest.raises(InputError, match=r"it has the unexpected blocks\.0\.attn\.gate\.bias"):
        compare(model)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resnet18", "'ResNet' object has no attribute 'blocks'"),
        ("swin_tiny_patch4_window7_224", "'SwinTransformer' object has no attribute 'blocks'"),
        ("eva02_tiny_patch14_224", "it has the unexpected blocks.0.attn.q_bias and 23 more"),
        ("deit_tiny_distilled_patch16_224", "its positions are not those of a square image (198 tokens)"),
        ("vit_small_patch16_18x2_224", "'ParallelThingsBlock' object has no attribute 'attn'"),
        ("vit_dpwee_patch16_reg1_gap_256", "object has no attribute"),
        ("vit_small_r26_s32_224", "it has the unexpected patch_embed.backbone."),
    ],
)
def test_models_that_ours_is_not_are_refused_before_a_download(name, part, monkeypatch):
    create = timm.create_model

    def fetch(name, pretrained):
        assert not pretrained
        return create(name)

    monkeypatch.setattr(timm, "create_model", fetch)
    with pytest.raises(InputError) as caught:
        load_pretrained(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert part in str(caught.value)
    assert caught.value.exit_code == 3
