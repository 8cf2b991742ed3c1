from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.peers import MODELS, build, models_of, parameters_of
from benchmarks.settings import PEERS, Sizes
from benchmarks.throughput import forward_flops
from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.measuring import facts

TINY = Sizes(embed_dim=24, depth=2, num_heads=2, num_classes=7, image_size=16, batch_size=3)


def test_at_the_real_size_all_have_our_parameters_within_one_percent() -> None:
    sizes = Sizes()
    counts = {name: parameters_of(build(name, sizes)) for name in MODELS}
    ours = counts["diffvit"]
    assert ours == 2_697_610
    assert counts["timm"] == counts["transformers"] == ours
    assert counts["timm differential"] == counts["diffvit differential"] == ours + 9 * (4 * 32 + 64)
    for name, count in counts.items():
        assert abs(count / ours - 1) < 0.01, name


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_logits_and_trains_whole(name: str) -> None:
    model = build(name, TINY)
    logits = model(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_flops_are_those_of_a_hand_count() -> None:
    tokens, dim, hidden, patch = 17, 24, 48, 48
    linear = 2 * dim * 3 * dim + 2 * dim * dim + 2 * 2 * dim * hidden
    block = tokens * linear + 2 * 2 * tokens * tokens * dim
    rest = 2 * 16 * patch * dim + 2 * dim * 7
    for name in ("timm", "vit-pytorch", "transformers"):
        assert forward_flops(build(name, TINY), TINY) == rest + 2 * block, name
    # In our last block only [CLS] asks, and its query and what it reads go through the weights of keys and values: all
    # for one token, but for the products with every token, one row a head.
    last = linear + TINY.num_heads * 2 * 2 * tokens * dim
    assert forward_flops(build("diffvit", TINY), TINY) == rest + block + last


def test_counting_leaves_the_model_as_it_was() -> None:
    model = build("diffvit", TINY).train()
    forward_flops(model, TINY)
    assert all(module.training for module in model.modules())


def test_models_of_the_peers_chosen() -> None:
    assert models_of(()) == ["diffvit", "diffvit differential"]
    assert models_of(("timm",)) == ["diffvit", "diffvit differential", "timm", "timm differential"]
    assert models_of(PEERS) == list(MODELS)


def test_a_model_is_the_same_each_time() -> None:
    first, second = (build("diffvit", TINY).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("library", "name"), [("timm.models.vision_transformer", "timm"), ("vit_pytorch", "vit-pytorch")]
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'diffvit\[bench\]'") as caught:
        build(name, TINY)
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"{name}: cannot be imported (")


def test_impossible_sizes_are_refused_by_us() -> None:
    with pytest.raises(ConfigError, match="num_heads: 5 does not divide embed_dim 24"):
        build("diffvit", Sizes(embed_dim=24, num_heads=5))


def test_versions_are_the_installed_ones() -> None:
    import timm

    found = facts("cpu", 1, (*PEERS, "no-such-library"))
    assert found["timm"] == timm.__version__
    assert found["no-such-library"] is None
    assert {*PEERS, "torch", "hardware", "cores", "date", "load"} <= set(found)
