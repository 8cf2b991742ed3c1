"""Pretrained models look inside themselves as timm's do, whatever layout their weights came in."""

import argparse
import socket
import sys
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm_maps import random_everywhere, timm_maps

from diffvit.attention import capture
from diffvit.cli.main import run
from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.hub import libraries, pretrained
from diffvit.hub.pretrained import DINO, load_pretrained
from diffvit.models.vit import VisionTransformer

NAME = "vit_small_patch16_224.dino"


def images_of(height, width, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


@lru_cache(2)
def theirs_of(name, **more):
    torch.manual_seed(1)
    return random_everywhere(timm.create_model(name, dynamic_img_size=True, **more))


def full_checkpoint(state):
    """As DINO's training leaves it."""
    head = {"head.mlp.0.weight": torch.ones(8, 384), "head.mlp.0.bias": torch.ones(8)}
    head |= {"head.last_layer.weight_g": torch.ones(16, 1), "head.last_layer.weight_v": torch.ones(16, 8)}
    other = {name: tensor + 1 for name, tensor in state.items()}
    return {
        "student": {f"module.{name}": t for name, t in {**prefixed("backbone.", other), **head}.items()},
        "teacher": {**prefixed("backbone.", state), **head},
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, lr=0.0005, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 16)},
    }


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def every_setting(given):
    """With those that are not given."""
    with torch.device("meta"):
        return VisionTransformer(**given).settings


LAYOUTS = {
    "plain": lambda state: state,
    "half": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
    "full": full_checkpoint,
    "teacher-wrapped": lambda state: {"teacher": prefixed("module.backbone.", state)},
    "teacher-with-a-plain-head": lambda state: {"teacher": {**state, "head.weight": torch.ones(4, 384)}},
    "student-alone": lambda state: {"student": prefixed("module._orig_mod.", state), "epoch": 3},
    "module": lambda state: prefixed("module.", state),
    "state_dict": lambda state: {"state_dict": prefixed("_orig_mod.", state), "loss": 0.1},
    "model": lambda state: {"model": state},
}


def test_dinos_last_maps_are_timms(tmp_path):
    theirs = theirs_of(NAME)
    torch.save(full_checkpoint(theirs.state_dict()), tmp_path / "full.pth")
    found = load_pretrained(NAME, tmp_path / "full.pth")
    assert (found.name, found.image_size, found.classes) == (NAME, 224, None)
    assert found.source == f"{tmp_path / 'full.pth'}; its teacher"
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not found.model.training
    for height, width in ((224, 224), (240, 320)):
        images = images_of(height, width)
        record = capture(found.model, images, layers=[-1])
        assert (record.grid, record.prefix, record.pool) == ((height // 16, width // 16), 1, "cls")
        expected, _ = timm_maps(theirs, images)
        assert record.layers[0].positive.shape == expected.shape
        assert (record.layers[0].positive - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert (found.model(images) - theirs(images)).abs().max() < 1e-5 * theirs(images).abs().max()


def test_the_table_is_timms():
    for name, settings in DINO.items():
        skeleton = pretrained.skeleton(name)
        assert every_setting(pretrained.settings_of_timm(name, skeleton)) == every_setting(settings)
        config = skeleton.pretrained_cfg
        assert (tuple(config["mean"]), tuple(config["std"])) == (pretrained.IMAGENET_MEAN, pretrained.IMAGENET_STD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout, tmp_path, monkeypatch):
    monkeypatch.setitem(DINO, NAME, {**DINO[NAME], "depth": 1})
    state = theirs_of(NAME, depth=1).state_dict()
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    generator = torch.random.get_rng_state()
    found = load_pretrained(NAME, tmp_path / "w.pth").model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.bfloat16().float() if layout == "half" else tensor
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == torch.float32
    if layout in ("plain", "full", "module"):  # the architecture can be told from the weights
        told = load_pretrained(None, tmp_path / "w.pth")
        assert (told.model.settings, told.name) == (every_setting(DINO[NAME]), "w")
        assert told.source.endswith("; heads taken as 64 wide")


def test_safetensors_and_another_grid_without_timm(tmp_path, monkeypatch):
    monkeypatch.setitem(DINO, NAME, {**DINO[NAME], "depth": 1})
    theirs = theirs_of(NAME, depth=1, img_size=96)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentFault, match=r"timm: cannot be imported .*pip install 'diffvit\[pretrained\]'"):
        load_pretrained("vit_tiny_patch16_224")
    found = load_pretrained(NAME, tmp_path / "w.safetensors")
    assert found.image_size == 96
    images = images_of(96, 128)
    assert (capture(found.model, images).layers[0].positive - timm_maps(theirs, images)[0]).abs().max() < 1e-5


# name, timm's settings, and what ours must be
OTHERS = [
    (
        "vit_dwee_patch16_reg1_gap_256.sbb_nadamuon_in1k",
        {"depth": 3},
        {"attention": "differential", "registers": 1, "layer_scale": 1e-5, "num_heads": 8, "pool": "mean"},
    ),
    ("vit_tiny_patch16_224", {"qk_norm": True, "depth": 2, "num_heads": 6}, {"qk_norm": "layer", "num_heads": 6}),
    ("deit3_small_patch16_224", {"depth": 2}, {"no_embed_class": True, "layer_scale": 1e-5}),
    ("vit_small_patch14_reg4_dinov2", {"depth": 2}, {"registers": 4, "num_classes": 0, "no_embed_class": True}),
    (
        "vit_tiny_patch16_224",
        {"depth": 2, "global_pool": "avg", "qkv_bias": False, "num_classes": 12},
        {"fc_norm": True, "pool": "mean", "num_classes": 12, "qkv_bias": False},
    ),
]


@pytest.mark.parametrize(("name", "settings", "ours"), OTHERS)
@pytest.mark.parametrize("named", [True, False])
def test_other_models_are_timms_too(name, settings, ours, named, tmp_path, monkeypatch):
    side = 4 * timm.create_model(name, **settings).patch_embed.patch_size[0]
    theirs = theirs_of(name, **settings, img_size=side)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **more, **settings))
    found = load_pretrained(name if named else None, tmp_path / "w.pth")
    assert ours.items() <= found.model.settings.items()
    assert found.image_size == side
    for height, width in ((side, side), (side // 2, side * 3 // 2)):
        images = images_of(height, width, 2)
        record = capture(found.model, images)
        for layer, maps in enumerate(record.layers):
            positive, negative = timm_maps(theirs, images, layer)
            assert (maps.positive - positive).abs().max() < 1e-5
            if negative is not None:
                assert (maps.negative - negative).abs().max() < 1e-5
        with torch.no_grad():
            expected = theirs(images)
            assert (found.model(images) - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1.0)


def test_what_timm_fetches_is_what_is_loaded(monkeypatch):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    theirs = theirs_of(name, depth=1)
    create = timm.create_model

    def fetch(name, pretrained, **_):
        return theirs if pretrained else create(name, depth=1)

    monkeypatch.setattr(timm, "create_model", fetch)
    found = load_pretrained(name)
    assert all(torch.equal(found.model.state_dict()[key], tensor) for key, tensor in theirs.state_dict().items())
    assert (len(found.classes), found.classes[207]) == (1000, timm.data.ImageNetInfo().index_to_description(207))
    assert (found.mean, found.image_size, found.name) == ((0.5, 0.5, 0.5), 224, name)
    assert found.source == f"timm {timm.__version__}, timm/{name}"


def test_a_failed_download_says_which_option_helps(monkeypatch):
    def unknown(*_):
        raise socket.gaierror("Name or service not known")

    hub = SimpleNamespace(ENDPOINT="https://hub.example", HF_HUB_OFFLINE=False)
    seen = []
    create = timm.create_model

    def fetch(name, pretrained, **_):
        if not pretrained:
            return create(name)
        seen.append(hub.HF_HUB_OFFLINE)
        raise OSError("no route\nto the hub. Try again")

    monkeypatch.setattr(timm, "create_model", fetch)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(libraries, "getproxies", dict)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", hub)
    with pytest.raises(EnvironmentFault) as caught:
        load_pretrained(NAME)
    assert caught.value.exit_code == 4
    why = "its weights could not be fetched (OSError: no route to the hub)"
    assert str(caught.value) == f"{NAME}: {why}. Fetch its weights elsewhere and give them with weights FILE."
    assert (seen, hub.HF_HUB_OFFLINE) == ([True], False)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_small_patch16_224.dno", r"no model 'vit_small_patch16_224\.dno' in timm .*Did you mean 'vit_small_pa"),
        ("hf-hub:timm/vit_tiny", "no model 'hf-hub:timm/vit_tiny'"),
        (None, "needs a name, a weights file, or both"),
        ("vit_small_patch32_224", "nobody published weights for vit_small_patch32_224.*weights FILE"),
    ],
)
def test_names_without_a_model_or_weights(name, why, monkeypatch):
    monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: name != "vit_small_patch32_224")
    with pytest.raises(ConfigError, match=why) as caught:
        load_pretrained(name)
    assert caught.value.exit_code == 2


def test_the_command_shows_timms_map_of_a_picture_of_250_by_330_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = theirs_of(NAME)
    torch.save({"teacher": prefixed("backbone.", theirs.state_dict())}, "d.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (250, 330, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    monkeypatch.setattr("diffvit.attention.report.to_png", lambda made: b"")  # what is drawn is not asked here
    command = f"attention --pretrained {NAME} --weights d.pth picture.png --layers -1 --format npz --out seen"
    assert run(command.split()) == 0
    cropped = torch.from_numpy(pixels[5:245, 5:325].transpose(2, 0, 1).astype(np.float64) / 255)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected, _ = timm_maps(theirs, ((cropped - mean) / std).float()[None])
    with np.load("seen/00-picture.png.npz") as arrays:
        found = torch.from_numpy(arrays["layer_11_positive"])
        assert arrays["grid"].tolist() == [15, 20]
    assert found.shape == (6, 301, 301)
    assert (found - expected[0]).abs().max() < 1e-5
