"""Registries and plugins: what is registered is a setting's value, has its effect, and is named where it is missing."""

import pytest
import torch
from torch import nn

import diffvit
from diffvit import registry
from diffvit.config import parse
from diffvit.data.augment import Augment
from diffvit.errors import ConfigError
from diffvit.models.attention import Attention


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch):
    for name in ("ATTENTION", "POSITIONS", "SOURCES", "AUGMENTATIONS"):
        monkeypatch.setattr(registry, name, getattr(registry, name))
    known = {name: dict(getattr(registry, name)) for name in ("ATTENTION", "POSITIONS", "SOURCES", "AUGMENTATIONS")}
    monkeypatch.setenv(registry.PLUGINS, "")  # and given back after what load_plugins does to it
    yield
    for name, entries in known.items():
        live = getattr(registry, name)
        live.clear()
        live.update(entries)


class Doubled(Attention):
    """Twice the output."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_an_attention_of_ones_own_is_built_validated_and_labelled():
    with pytest.raises(ConfigError, match=r"no such attention .'doubled' vs softmax, differential, differential-split"):
        parse({"model": {"attention": "doubled"}})
    diffvit.register_attention("doubled", Doubled, label="Doubled ViT", refuse=lambda heads: "seven" * (heads == 7))
    assert parse({"model": {"attention": "doubled"}}).model.attention == "doubled"
    with pytest.raises(ConfigError, match="seven"):
        parse({"model": {"attention": "doubled", "num_heads": 7, "embed_dim": 70}})
    assert registry.label_of("doubled") == "Doubled ViT"
    assert registry.label_of("unheard of") == "unheard of"
    torch.manual_seed(0)
    model = diffvit.VisionTransformer(attention="doubled", embed_dim=32, depth=2, num_heads=2, image_size=16)
    block = model.blocks[1]
    x = torch.randn(2, 5, 32)
    plain = Attention(32, 2)
    plain.load_state_dict(block.attn.state_dict())
    assert torch.equal(block.attn(x), 2 * plain(x))
    assert len(model.attention_maps(torch.randn(1, 3, 16, 16))) == 2
    assert "blocks.0.attn" not in diffvit.accelerate(model)


def test_a_position_embedding_of_ones_own_is_added_and_trained():
    class Ramp(nn.Module):
        def __init__(self, grid, dim, prefix):
            super().__init__()
            self.ramp = nn.Parameter(torch.arange(float(prefix + grid[0] * grid[1])).repeat(dim, 1).T[None])

        def forward(self):
            return self.ramp

    diffvit.register_position("ramp", Ramp)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": 16}
    torch.manual_seed(0)
    model = diffvit.VisionTransformer(pos_embed="ramp", **sizes)
    bare = diffvit.VisionTransformer(pos_embed="none", **sizes)
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if name != "pos_embed.ramp"})
    images = torch.randn(2, 3, 16, 16)
    added = model.tokens(images) - bare.tokens(images)
    assert torch.allclose(added, torch.arange(17.0)[None, :, None].expand_as(added), atol=1e-5)
    model(images).sum().backward()
    assert model.get_parameter("pos_embed.ramp").grad is not None
    assert parse({"model": {"pos_embed": "ramp+rope-2d"}}).model.pos_embed == "ramp+rope-2d"


def test_an_augmentations_draws_depend_on_the_sample_alone():
    seen = []

    def shift(pixels, draws):
        seen.append(draws)
        return pixels + (draws[:, 0, None, None, None] * 100).to(torch.uint8)

    diffvit.register_augmentation("shift", shift)
    pixels, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6)
    config = parse({"augment": {"policy": "shift"}, "model": {"num_classes": 6}, "seed": 3})
    made = Augment(pixels, labels, [0.0] * 3, [1.0] * 3, config)
    whole = made.pictures(torch.arange(6), 1)
    parts = torch.cat([made.pictures(torch.tensor([index]), 1) for index in range(6)])
    assert torch.equal(whole, parts)
    assert seen[0].shape == (6, 16)
    assert len(whole[:, 0, 0, 0].unique()) > 3
    assert not torch.equal(whole, made.pictures(torch.arange(6), 2))


@pytest.mark.parametrize(
    "register",
    [
        lambda: diffvit.register_attention("softmax", Doubled),
        lambda: diffvit.register_position("learned-1d+rope-2d", nn.Identity),
        lambda: diffvit.register_source("cifar10", print),
        lambda: diffvit.register_augmentation("none", print),
    ],
)
def test_no_name_is_taken_twice(register):
    with pytest.raises(ValueError, match="registered already"):
        register()


def test_a_plugin_is_loaded_once_and_its_faults_are_told(tmp_path):
    good, bad, none = tmp_path / "good.py", tmp_path / "bad.py", tmp_path / "none.py"
    good.write_text("import diffvit\nfrom diffvit.models.attention import Attention\n")
    good.write_text(good.read_text() + "diffvit.register_attention('good', Attention)\n")
    bad.write_text("raise RuntimeError('a fault')\n")
    registry.load_plugins([good])
    registry.load_plugins([good])
    assert "good" in registry.ATTENTION
    registry.load_plugins()  # as a process does that was started from here
    for file, why in ((bad, "RuntimeError: a fault"), (none, "no such file")):
        with pytest.raises(ConfigError, match=why):
            registry.load_plugins([file])
