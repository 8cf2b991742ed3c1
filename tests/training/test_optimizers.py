"""Which parameters get which update; Muon against torch's and the singular value decomposition; schedule; average."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffvit.models.vit import VisionTransformer
from diffvit.settings import OptimizerConfig
from diffvit.training import optimizers
from diffvit.training.optimizers import SCHEDULES, Muon, WeightAverage, schedule

SETTINGS = {"lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1}


def build(model, **changes):
    return optimizers.build(model, OptimizerConfig(**{**SETTINGS, **changes}))


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
    held = [key for o in build(model, name=name).values() for key in held_by(model, o)]
    assert sorted(held) == sorted(key for key, _ in model.named_parameters())


@pytest.mark.parametrize("split", [False, True])
def test_muon_takes_the_blocks_matrices_and_nothing_else(split):
    model = small()
    muon = build(model, name="muon", split_qkv=split)["muon"]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    held = held_by(model, muon)
    assert sorted(held) == sorted(f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers)
    apart = [id(each) for group in muon.param_groups for each in group["params"] if group["split"] == 3]
    assert apart == [id(block.attn.qkv.weight) for block in model.blocks if split]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_shrinks_matrices_and_leaves_the_rest(name):
    model = small()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built = build(model, name=name)
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


def step_with(model, built, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in built.values():
        optimizer.step()


def test_what_they_remember_survives_a_round_trip():
    models = [small(), small()]
    built = [build(model, name="muon") for model in models]
    step_with(models[0], built[0], 1)
    models[1].load_state_dict(models[0].state_dict())
    saved = {key: value.clone() for key, value in optimizers.state_tensors(built[0], models[0]).items()}
    optimizers.load_state_tensors(built[1], models[1], saved)
    for model, both in zip(models, built, strict=True):
        step_with(model, both, 2)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


SHAPES = [(48, 16), (16, 16), (32, 16), (16, 32), (48, 16), (16, 16)]


def matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(make, steps=5, start=None):
    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in start or matrices(0)]
    optimizer = make(parameters)
    for step in range(1, steps + 1):
        for parameter, gradient in zip(parameters, matrices(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, optimizer


def test_it_computes_what_torchs_muon_does():
    expected, theirs = train(
        lambda p: torch.optim.Muon(p, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    )
    found, ours = train(lambda p: Muon(p, lr=0.01, weight_decay=0.1, momentum=0.9))
    for one, other, start in zip(found, expected, matrices(0), strict=True):
        # Products of a batch may be rounded in another order, and they are bfloat16's.
        assert (one - other).norm() < 0.01 * (other - start).norm()
        torch.testing.assert_close(ours.state[one]["momentum_buffer"], theirs.state[other]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_the_step_is_the_nearest_orthogonal_matrix_up_to_the_iterations_slack(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = gradient
    Muon([parameter], lr=1.0).step()
    step = -parameter.detach() / (0.2 * max(shape) ** 0.5)
    left, values, right = torch.linalg.svd(step, full_matrices=False)
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert ((left @ right) * (u @ v)).sum() / min(shape) > 0.98  # the cosine between the two rotations


def test_parts_of_a_matrix_are_made_orthogonal_by_themselves():
    whole, gradient = torch.nn.Parameter(torch.zeros(48, 16)), matrices(3)[0]
    parts = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.split(16), strict=True):
        part.grad = piece.clone()
    Muon([{"params": [whole], "split": 3}], lr=0.1).step()
    Muon(parts, lr=0.1).step()
    apart = torch.cat([part.detach() for part in parts])
    assert (whole - apart).norm() < 0.01 * apart.norm()
    left = torch.linalg.svdvals(whole.detach()[:16])
    assert left.max() / left.min() < 2


def test_without_a_gradient_nothing_moves():
    parameter, other = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    other.grad = torch.ones(4, 4)
    optimizer = Muon([parameter, other], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(4, 4))
    assert not torch.equal(other, torch.ones(4, 4))
    assert parameter not in optimizer.state


@pytest.mark.parametrize(("shape", "split"), [((4,), 1), ((2, 2, 2), 1), ((4, 4), 3)])
def test_what_is_no_matrix_is_refused(shape, split):
    with pytest.raises(ValueError, match=f"{split} x n rows \\(found {'x'.join(map(str, shape))}\\)"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(shape))], "split": split}], lr=0.1)


names = st.sampled_from(sorted(SCHEDULES))
fractions = st.floats(0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(total=st.integers(1, 300), name=names, warmup=fractions, final=fractions)
def test_the_rate_rises_then_never_rises_again_and_reaches_the_peak(total, name, warmup, final):
    rates = [schedule(step, total, name=name, warmup=warmup, final=final) for step in range(total)]
    rising = round(warmup * total)
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert max(rates) == 1.0
    fall = rates[rising:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(fall))


def test_schedules_at_half_of_the_fall():
    half = {name: schedule(60, 100, name=name, warmup=0.2, final=0.0) for name in SCHEDULES}
    assert half == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5})
    assert schedule(999, 1000, name="linear", warmup=0.0, final=0.25) == pytest.approx(0.25, abs=1e-3)
    assert schedule(40, 100, name="cosine", warmup=0.2, final=0.1) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    )


def test_the_average_follows_the_recurrence_in_a_model_of_its_own_that_no_gradient_reaches():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.6)
    weight = model[0].weight
    expected = weight.detach().double()
    for step in range(20):
        with torch.no_grad():
            weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double()
        torch.testing.assert_close(average.model[0].weight.double(), expected, atol=1e-5, rtol=1e-5)
    assert (model.training, average.model.training) == (True, False)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)  # what stays as it is does so bit for bit
