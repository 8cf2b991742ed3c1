"""Maps of other libraries' Vision Transformers against those that each library computes itself."""

from __future__ import annotations

import copy
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVit
from timm_maps import random_everywhere
from torch import nn
from vit_pytorch import ViT
from vit_pytorch.recorder import Recorder

from diffvit.attention import METHODS, attribute, capture, rollout
from diffvit.attention.attribute import randomised
from diffvit.attention.heads import ablation
from diffvit.cli.main import run
from diffvit.errors import ConfigError, EnvironmentFault, InputError
from diffvit.hub.adapters import AdaptedModel, Adapter, adapted, load_model
from diffvit.models.vit import VisionTransformer

SIDE, ODD, PATCH = 32, 40, 8
HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}
TIMM = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
TIMM["dynamic_img_size"] = True


def hf(name, **more):
    """transformers' model of that name with its own eager attention, sharp enough that every weight matters."""
    settings = HF | ({"mlp_ratio": 2} if name.startswith("Dinov2") else {"intermediate_size": 64}) | more
    config = name.replace("Model", "Config").replace("WithProjection", "").replace("ForImageClassification", "Config")
    return getattr(transformers, name)(getattr(transformers, config)(**settings, attn_implementation="eager"))


@torch.no_grad()
def hf_maps(model, images):
    resizes = type(model).__name__.startswith(("ViT", "DeiT", "CLIP"))  # the others do so unasked
    more = {"interpolate_pos_encoding": True} if resizes else {}
    return list(model(images, output_attentions=True, **more).attentions)


@torch.no_grad()
def received(model, images, modules):
    """What each of these modules is given by the model's own forward pass."""
    found, handles = [], []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda _, args: found.append(args[0])))
    model(images)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def multi_head_maps(model, images, modules):
    """torch's own weights of MultiheadAttention, (batch, heads, query, key), on what it is given."""
    maps = []
    for module, given in zip(modules, received(model, images, modules), strict=True):
        maps.append(module(given, given, given, need_weights=True, average_attn_weights=False)[1])
    return maps


def torchvision_maps(model, images):
    if images.shape[-1] != SIDE:  # its own way to another size
        state = torchvision.models.vision_transformer.interpolate_embeddings(
            ODD, PATCH, copy.deepcopy(model.state_dict())
        )
        model = torchvision.models.VisionTransformer(ODD, PATCH, 2, 4, 32, 64, num_classes=5).eval()
        model.load_state_dict(state)
    return multi_head_maps(model, images, [layer.self_attention for layer in model.encoder.layers])


def open_clip_maps(model, images):
    if images.shape[-1] != SIDE:
        towers = [nn.Module(), nn.Module()]
        state = {f"visual.{name}": tensor for name, tensor in model.state_dict().items()}
        towers[1].visual = open_clip.transformer.VisionTransformer(ODD, PATCH, 32, 2, 4, 2.0, output_dim=16).eval()
        open_clip.model.resize_pos_embed(state, towers[1])
        towers[1].load_state_dict(state)
        model = towers[1].visual
    return multi_head_maps(model, images, [block.attn for block in model.transformer.resblocks])


def vit_pytorch_maps(model, images):
    return list(Recorder(copy.deepcopy(model))(images)[1].detach().unbind(1))


@torch.no_grad()
def timm_eager_maps(model, images):
    """What timm's attention gives to its dropout when it is not fused."""
    found, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda _, args, out: found.append(args[0])))
    model(images)
    for handle, block in zip(handles, model.blocks, strict=True):
        handle.remove()
        block.attn.fused_attn = True
    return found


CLIP_TOWER = partial(open_clip.transformer.VisionTransformer, SIDE, PATCH, 32, 2, 4, 2.0, output_dim=16)
TORCHVISION = partial(torchvision.models.VisionTransformer, SIDE, PATCH, 2, 4, 32, 64, num_classes=5)
DINOV3 = partial(timm.create_model, "vit_small_patch16_dinov3", **TIMM | {"num_classes": 0})
BOTH, CLS, REGISTER = (SIDE, ODD), ["[CLS]"], ["register"]
VIT_PYTORCH = {"image_size": SIDE, "patch_size": PATCH, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4}
# Name: what makes it, its maps, the sizes it takes, tokens before the patches.
KNOWN = {
    "hf-vit": (partial(hf, "ViTModel"), hf_maps, BOTH, CLS),
    "hf-vit-classifier": (partial(hf, "ViTForImageClassification"), hf_maps, BOTH, CLS),
    "hf-deit": (partial(hf, "DeiTModel"), hf_maps, BOTH, [*CLS, "distillation"]),
    "hf-dinov2": (partial(hf, "Dinov2Model"), hf_maps, BOTH, CLS),
    "hf-dinov2-swiglu": (partial(hf, "Dinov2Model", use_swiglu_ffn=True), hf_maps, BOTH, CLS),
    "hf-dinov2-registers": (partial(hf, "Dinov2WithRegistersModel"), hf_maps, BOTH, CLS + REGISTER * 4),
    "hf-dinov3": (partial(hf, "DINOv3ViTModel", num_register_tokens=2), hf_maps, BOTH, CLS + REGISTER * 2),
    "hf-clip": (partial(hf, "CLIPVisionModel"), hf_maps, BOTH, CLS),
    "torchvision": (TORCHVISION, torchvision_maps, BOTH, CLS),
    "vit-pytorch": (partial(ViT, **VIT_PYTORCH, mlp_dim=64, dim_head=8), vit_pytorch_maps, (SIDE,), CLS),
    "open-clip": (CLIP_TOWER, open_clip_maps, BOTH, CLS),
    "timm-distilled": (partial(VisionTransformerDistilled, **TIMM), timm_eager_maps, BOTH, [*CLS, "distillation"]),
    "timm-clip": (partial(TimmVit, **TIMM, pre_norm=True, act_layer="quick_gelu"), timm_eager_maps, BOTH, CLS),
    "timm-eva": (partial(Eva, **TIMM, use_rot_pos_emb=True, swiglu_mlp=True), timm_eager_maps, BOTH, CLS),
    "timm-dinov3": (DINOV3, timm_eager_maps, BOTH, CLS + REGISTER * 4),
}


def made(name):
    torch.manual_seed(0)
    return random_everywhere(KNOWN[name][0](), spread=0.2)


def images_of(count, side=SIDE):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("name", "side"), [(name, side) for name, entry in KNOWN.items() for side in entry[2]])
def test_maps_are_the_librarys_own(name, side, count):
    model, images = made(name), images_of(count, side)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    record = capture(model, images)
    expected = KNOWN[name][1](model, images)
    assert len(record.layers) == len(expected) == 2
    for layer, theirs in enumerate(expected):
        found = record.maps(layer)
        assert found.std() > 0.01
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    rows = side // PATCH
    assert record.grid == (rows, rows)
    assert list(adapted(model).adapter.prefix_tokens) == KNOWN[name][3]
    assert record.prefix == len(KNOWN[name][3])
    assert record.to_patches(-1).shape == (count, 4, rows, rows)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("name", ["hf-vit-classifier", "torchvision", "vit-pytorch", "timm-distilled", "timm-eva"])
def test_methods_that_explain_a_class_see_the_same_model(name):
    model, images = made(name), images_of(2)
    wide = adapted(model.double())
    images = images.double()
    for method in METHODS:
        found = attribute(model, images, method, 1)
        assert found.shape == (2, 4, 4)
        assert found.isfinite().all()
        assert found.std() > 0
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wide(pixels)[:, 1].sum(), pixels)
    by_patch = (gradient * images).sum(1).unflatten(2, (4, PATCH)).unflatten(1, (4, PATCH)).sum((2, 4))
    torch.testing.assert_close(attribute(model, images, "input-x-gradient", 1), by_patch.detach())


def test_a_model_that_fits_ours_has_the_same_maps_and_methods_either_way():
    theirs = random_everywhere(TimmVit(**{**TIMM, "reg_tokens": 1}), spread=0.2).double()
    settings = {"image_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    ours = VisionTransformer(**settings, mlp_ratio=4.0, registers=1).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = images_of(3).double()
    for layer in range(2):
        torch.testing.assert_close(capture(theirs, images).maps(layer), capture(ours, images).maps(layer))
    torch.testing.assert_close(rollout(capture(theirs, images)), rollout(capture(ours, images)))
    for method in METHODS:
        torch.testing.assert_close(attribute(theirs, images, method, 2), attribute(ours, images, method, 2))
    ours_graded, graded = (capture(model, images, grad=True, target=2).gradients for model in (ours, theirs))
    torch.testing.assert_close(graded, ours_graded)


def ours_of_torchvision(model):
    names = {"conv_proj": "patch_embed.proj", "class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
    names |= {"encoder.layers.encoder_layer_": "blocks.", "ln_1": "norm1", "ln_2": "norm2", "encoder.ln": "norm"}
    names |= {"self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj": "attn.proj", "heads.head": "head"}
    names |= {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    settings = {"image_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    found = VisionTransformer(**settings).to(model.class_token.dtype).eval()
    found.load_state_dict(state)
    return found


def test_methods_reach_into_multi_head_attention():
    model = made("torchvision").double()
    ours, images = ours_of_torchvision(model), images_of(3).double()
    torch.testing.assert_close(model(images), ours(images))
    for method in METHODS:
        torch.testing.assert_close(attribute(model, images, method, 2), attribute(ours, images, method, 2))


def test_untrained_half_and_training_models():
    model = KNOWN["torchvision"][0]().train()  # its head starts at zero
    dropout = torchvision.models.VisionTransformer(SIDE, PATCH, 2, 4, 32, 64, num_classes=5, dropout=0.5).train()
    for each in (model, dropout):
        assert capture(each, images_of(2)).maps(1).shape == (2, 4, 17, 17)
        assert all(module.training for module in each.modules())
    torch.testing.assert_close(capture(dropout, images_of(2)).maps(1), capture(dropout, images_of(2)).maps(1))
    exact = capture(made("hf-dinov2"), images_of(2)).maps(1)
    half = capture(made("hf-dinov2").bfloat16(), images_of(2))
    assert half.maps(1).dtype == torch.float32
    assert 0 < (half.maps(1) - exact).abs().max() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(capture(made("hf-dinov2"), images_of(2)).maps(1), exact)
    last = adapted(made("torchvision")).run(images_of(1), layers=[1])
    assert len(last.maps) == 1


def test_what_needs_blocks_or_norms_is_refused():
    model, images = made("torchvision"), images_of(1)
    with pytest.raises(InputError, match="is not a model of this package"):
        ablation(model, images, torch.tensor([0]))
    with pytest.raises(InputError, match="is not a model of this package"):
        next(randomised(model))
    plain = AdaptedModel(
        Attending(), Adapter(PATCH, (SIDE, SIDE), (), lambda model, images: model(images), pool="mean")
    )
    with pytest.raises(ConfigError, match="needs a norm before the last attention"):
        attribute(plain, images, "grad-cam", 1)
    oblong = ViT(**{**VIT_PYTORCH, "image_size": (32, 40)}, mlp_dim=64, dim_head=8)
    with pytest.raises(InputError, match=r"square images and patches \(found 20 patches\)"):
        capture(oblong, torch.randn(1, 3, 32, 40))
    with pytest.raises(InputError, match="ModifiedResNet: is of no kind that is known"):
        capture(open_clip.create_model("RN50").visual, images_of(1, 224))
    strange = TimmVit(**{**TIMM, "attn_layer": "diff", "num_heads": 2, "act_layer": "quick_gelu"})
    with pytest.raises(InputError, match="timm's model gives other logits"):
        capture(random_everywhere(strange, spread=0.2), images)


def test_timms_differential_attention_is_shown_as_ours():
    model = random_everywhere(TimmVit(**{**TIMM, "attn_layer": "diff", "num_heads": 2, "dynamic_img_size": False}))
    record = capture(model, images_of(1))
    assert record.differential
    assert record.maps(0).shape == (1, 2, 17, 17)


def test_models_and_sizes_that_are_not_known_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"^SwinTransformer: is of no kind that is known") as caught:
        capture(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)), images_of(1))
    assert "\n" not in str(caught.value)
    fixed = TimmVit(**TIMM | {"dynamic_img_size": False})
    with pytest.raises(InputError, match=r"do not fit the model \(found 40x40 vs 32x32 pixels\)"):
        capture(fixed, images_of(1, ODD))
    with pytest.raises(InputError, match="found 36x36 vs 32x32, or multiples of 8"):
        capture(made("timm-eva"), images_of(1, 36))
    with pytest.raises(ConfigError, match="no such layer"):
        capture(made("timm-eva"), images_of(1), layers=[2])


class Squared(nn.Module):
    """Attention without a softmax: there is no map to find."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, PATCH, PATCH), nn.Linear(8, 4)

    def forward(self, images):
        x = self.embed(images).flatten(2).mT
        scores = (x @ x.mT).square()
        return self.head((scores / scores.sum(-1, keepdim=True)) @ x).mean(1)


class Attending(Squared):
    """Attention of one's own, over scaled_dot_product_attention with three axes made four."""

    def forward(self, images):
        x = self.embed(images).flatten(2).mT[:, None]
        return self.head(nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]).mean(1)


def test_a_model_of_ones_own_is_described_or_refused():
    described = Adapter(PATCH, (SIDE, SIDE), (), lambda model, images: model(images), pool="mean")
    model, images = Attending(), images_of(2)
    found = attribute(AdaptedModel(model, described), images, "rollout")
    x = model.embed(images).flatten(2).mT
    maps = (x @ x.mT / 8**0.5).softmax(-1)
    mixed = (0.5 * maps + 0.5 * torch.eye(16)).mean(1).unflatten(1, (4, 4))
    torch.testing.assert_close(found, mixed.detach())
    with pytest.raises(InputError, match=r"not over all its patches \(found no maps vs 16 tokens"):
        AdaptedModel(Squared(), described)
    with pytest.raises(InputError, match="found 16 vs 17 tokens"):
        AdaptedModel(model, Adapter(PATCH, (SIDE, SIDE), ("[CLS]",), lambda model, images: model(images)))


def saved(folder):
    """A classifier of transformers as its users save it, in half precision."""
    labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    model = random_everywhere(hf("ViTForImageClassification", **labels), spread=0.2).half()
    model.save_pretrained(folder)
    facts = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return model.float()


def test_a_saved_model_of_transformers_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = saved(tmp_path / "mine")
    pixels = np.random.default_rng(0).integers(0, 256, (45, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    monkeypatch.setattr("diffvit.attention.report.to_png", lambda made: b"")  # what is drawn is not asked here
    command = "attention --pretrained hf:mine picture.png --method attnlrp --target owl --format npz --out seen"
    assert run(command.split()) == 0
    cropped = torch.from_numpy(pixels[2:42, :32].transpose(2, 0, 1).astype(np.float64) / 255)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    image = ((cropped - mean) / std).float()[None]
    with np.load("seen/00-picture.png.npz") as arrays:
        assert (arrays["grid"].tolist(), int(arrays["prefix"])) == ([5, 4], 1)
        np.testing.assert_allclose(arrays["layer_1_positive"], hf_maps(model, image)[1][0], atol=1e-5)
        np.testing.assert_allclose(arrays["attnlrp"], attribute(model, image, "attnlrp", 2)[0], rtol=1e-3, atol=1e-5)


def test_pretrained_models_of_four_libraries(tmp_path, monkeypatch):
    saved(tmp_path / "mine")
    found = load_model(f"hf:{tmp_path / 'mine'}")
    assert (found.name, found.mean, found.std) == ("mine", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (found.classes, found.image_size) == (["cat", "dog", "owl"], SIDE)
    assert next(found.model.parameters()).dtype == torch.float32

    vision = {"image_size": SIDE, "patch_size": PATCH, "width": 64, "layers": 2}
    text = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1}
    config = tmp_path / "ViT-tiny.json"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    theirs = random_everywhere(open_clip.create_model("ViT-tiny"), spread=0.2)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    found = load_model(f"open_clip:ViT-tiny/{tmp_path / 'clip.pt'}")
    images = images_of(2)
    torch.testing.assert_close(found.model(images), theirs.encode_image(images))
    torch.testing.assert_close(capture(theirs, images).maps(1), capture(found.model, images).maps(1))
    assert (found.mean, found.classes) == (open_clip.OPENAI_DATASET_MEAN, None)

    model = made("torchvision")
    prepare = SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    weights = SimpleNamespace(transforms=lambda: prepare, meta={"categories": list("abcde")})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: SimpleNamespace(DEFAULT=weights))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: model)
    found = load_model("torchvision:vit_b_16")
    assert (found.name, found.mean, found.classes) == ("vit_b_16", (0.1, 0.2, 0.3), list("abcde"))

    create = timm.create_model
    distilled = made("timm-distilled")

    def fetch(name, pretrained, **more):
        return distilled if pretrained else create(name, pretrained=False, **more)

    distilled.pretrained_cfg = create("deit_tiny_distilled_patch16_224").pretrained_cfg
    monkeypatch.setattr(timm, "create_model", fetch)
    found = load_model("deit_tiny_distilled_patch16_224")
    assert (found.model.model, found.mean) == (distilled, (0.485, 0.456, 0.406))
    assert found.model.prefix == 2


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("keras:vit", ConfigError, "pretrained: .*keras"),
        ("open_clip:ViT-B-32", ConfigError, "needs the weights' tag"),
        ("open_clip:ViT-B-99/openai", EnvironmentFault, "open_clip:ViT-B-99/openai: cannot be loaded"),
        ("torchvision:vit_b_17", EnvironmentFault, "cannot be loaded .ValueError: Unknown model vit_b_17"),
        ("hf:no-such-folder/at-all", EnvironmentFault, "cannot be loaded"),
        ("torchvision:resnet18", InputError, "ResNet: is of no kind that is known"),
    ],
)
def test_names_that_give_no_model_are_refused_in_one_line(name, kind, why, monkeypatch):
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: torchvision.models.resnet18())
    with pytest.raises(kind, match=why) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
