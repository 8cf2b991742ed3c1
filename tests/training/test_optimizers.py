"""Which parameters get which update."""

import pytest
import torch

from diffvit.models.vit import VisionTransformer
from diffvit.training import optimizers

SETTINGS = {"lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.999), "momentum": 0.95}


def small(**overrides):
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 8, "attention": "differential"}
    return VisionTransformer(**{**settings, **overrides})


def held_by(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("pos_embed", ["learned-1d", "learned-2d", "sincos-2d", "none"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_held_once(name, pos_embed):
    model = small(pos_embed=pos_embed, head="mlp")
    held = [key for o in optimizers.build(model, name=name, **SETTINGS).values() for key in held_by(model, o)]
    assert sorted(held) == sorted(key for key, _ in model.named_parameters())


def test_muon_takes_the_blocks_matrices_and_nothing_else():
    model = small()
    held = held_by(model, optimizers.build(model, name="muon", **SETTINGS)["muon"])
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert sorted(held) == sorted(f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_shrinks_matrices_and_leaves_the_rest(name):
    model = small()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built = optimizers.build(model, name=name, **SETTINGS)
    optimizers.set_rates(built, 0.5)
    for optimizer in built.values():
        optimizer.step()
    shrunk = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    matrices = {key for key in before if key.startswith("blocks.") and before[key].ndim == 2}
    assert shrunk == matrices | {"patch_embed.proj.weight", "head.weight"}
    for key in shrunk:
        rate = 0.02 if name == "muon" and key.startswith("blocks.") else 0.01
        kept = dict(model.named_parameters())[key]
        torch.testing.assert_close(kept, before[key] * (1 - 0.5 * rate * 0.1))


def test_muon_step_has_the_size_of_adamws():
    model = small(embed_dim=64, num_heads=2)
    weight = model.blocks[0].attn.proj.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    muon = optimizers.build(model, name="muon", **{**SETTINGS, "weight_decay": 0.0})["muon"]
    muon.step()
    root_mean_square = (weight - before).square().mean().sqrt().item() / 0.02
    assert root_mean_square == pytest.approx(0.2, rel=0.2)  # arXiv 2502.16982: AdamW's is 0.2 to 0.4


def test_split_queries_keys_and_values_are_orthogonal_apart():
    spread = []
    for split in (False, True):
        model = small(embed_dim=32, num_heads=2)
        weight = model.blocks[0].attn.qkv.weight
        before = weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        built = optimizers.build(model, name="muon", **{**SETTINGS, "weight_decay": 0.0}, split_qkv=split)
        assert len(held_by(model, built["muon"])) == 8
        built["muon"].step()
        values = torch.linalg.svdvals((weight - before).detach()[:32])
        spread.append((values.max() / values.min()).item())
    assert spread[1] < 2 < spread[0]


def test_rates_follow_the_peak():
    built = optimizers.build(small(), name="muon", **SETTINGS)
    optimizers.set_rates(built, 0.25)
    assert optimizers.rate(built, "adamw") == pytest.approx(0.0025)
    assert optimizers.rate(built, "muon") == pytest.approx(0.005)
    optimizers.set_rates(built, 1.0)
    assert optimizers.rate(built, "muon") == pytest.approx(0.02)
    assert optimizers.rate(optimizers.build(small(), name="adamw", **SETTINGS), "muon") is None


def step_with(model, built, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in built.values():
        optimizer.step()


def test_what_they_remember_survives_a_round_trip():
    models = [small(), small()]
    built = [optimizers.build(model, name="muon", **SETTINGS) for model in models]
    step_with(models[0], built[0], 1)
    models[1].load_state_dict(models[0].state_dict())
    saved = {key: value.clone() for key, value in optimizers.state_tensors(built[0], models[0]).items()}
    optimizers.load_state_tensors(built[1], models[1], saved)
    for model, both in zip(models, built, strict=True):
        step_with(model, both, 2)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("key", "tensor", "why"),
    [
        ("adamw/nothing/exp_avg", torch.zeros(1), "no parameter"),
        ("muon/norm.weight/momentum_buffer", torch.zeros(16), "no parameter"),
        ("adamw/norm.weight/exp_avg", torch.zeros(17), "another shape"),
    ],
)
def test_foreign_state_is_refused(key, tensor, why):
    model = small()
    with pytest.raises(ValueError, match=why):
        optimizers.load_state_tensors(optimizers.build(model, name="muon", **SETTINGS), model, {key: tensor})
