"""The steps of a run, compiled or not."""

import math
import time
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from diffvit.config import parse
from diffvit.data import shapes
from diffvit.data.batches import epoch_order
from diffvit.training.loop import NonFiniteStep, Trainer, compile_limits, compiled
from diffvit.training.run_dir import RunDir
from diffvit.training.task import Classification, TrainingData, build_model
from tests.training.small import small

config = partial(small, {"batch_size": 8, "epochs": 2, "model": {"depth": 2}, "optimizer": {"name": "muon"}})


def trainer(config, objective=None, images=30, std=0.25):
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    data = TrainingData("shapes", shapes.generate("train", images, size=16), None, [0.5] * 3, [std] * 3, "", config)
    model = build_model(config.model, config.seed)
    return Trainer(fabric, config, data, model, objective or Classification())


def epoch_of(trained):
    for _ in trained.steps():
        pass
    return trained.finish_epoch()


def weights(trained):
    return {name: value.detach().clone() for name, value in trained.model.state_dict().items()}


class Watching(Classification):
    """Remembers the images it saw."""

    def __init__(self):
        self.batches = []

    def loss(self, model, batch, total=None):
        self.batches.append(batch.images)
        return super().loss(model, batch)


def test_an_epoch_shows_each_image_once_in_another_order_each_time():
    watching = Watching()
    trained = trainer(config(), watching)
    orders = []
    for _ in range(2):
        watching.batches.clear()
        assert sum(1 for _ in trained.steps()) == 4
        row = trained.finish_epoch()
        assert [len(images) for images in watching.batches] == [8, 8, 8, 6]
        orders.append(torch.cat(watching.batches).flatten(1))
    assert not torch.equal(*orders)
    first, second = (order[torch.argsort(order.double().sum(1))] for order in orders)
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == 30
    assert (trained.position.epoch, trained.position.step, row["images_seen"]) == (2, 8, 60)


def test_the_loss_is_the_mean_over_the_images():
    watching = Watching()
    trained = trainer(config(optimizer={"name": "adamw", "lr": 0.0}), watching)
    for _ in trained.steps():
        running = trained.running()
    row = trained.finish_epoch()
    assert (running["step"], running["epoch"]) == (4, 1)
    assert (running["loss"], running["accuracy"]) == (row["train_loss"], row["train_accuracy"])
    images = torch.cat(watching.batches)
    assert len(images) == 30
    labels = trained.batches.labels[epoch_order(trained.config.seed, 0, trained.images)]
    logits = trained.model(images)
    assert row["train_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulating_gives_the_same_gradients(parts):
    whole, split = trainer(config()), trainer(config(accumulate=parts))
    for trained in (whole, split):
        next(trained.steps())
    for one, other in zip(whole.parameters, split.parameters, strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)
    for name, value in whole.position.sums.items():
        assert split.position.sums[name] == pytest.approx(value, rel=1e-5)


class Poisoned(Classification):
    """A finite loss whose gradient is not."""

    def loss(self, model, batch, total=None):
        total, metrics = super().loss(model, batch)
        return total + (model.module.head.weight * 0.0).sqrt().sum(), metrics


@pytest.mark.parametrize(
    ("objective", "std", "why"),
    [(None, 1e-40, "loss nan"), (Poisoned(), 0.25, "gradient norm nan")],  # such images become infinite
)
def test_a_non_finite_loss_or_gradient_changes_nothing(objective, std, why):
    trained = trainer(config(ema=0.9), objective, std=std)
    before, average = weights(trained), {name: each.clone() for name, each in trained.evaluated.state_dict().items()}
    with pytest.raises(NonFiniteStep, match=why):
        next(trained.steps())
    assert all(torch.equal(weights(trained)[name], value) for name, value in before.items())
    assert all(torch.equal(trained.evaluated.state_dict()[name], value) for name, value in average.items())
    assert all(not optimizer.state for optimizer in trained.optimizers.values())
    assert trained.position.step == 0


def test_looking_seldom_gives_the_same_weights_and_sums(monkeypatch):
    often = trainer(config(ema=0.9))
    monkeypatch.setattr("diffvit.training.loop._READ_EVERY", {"cpu": 3})
    seldom = trainer(config(ema=0.9))
    rows = [epoch_of(trained) for trained in (often, seldom)]
    assert all(torch.equal(weights(often)[name], value) for name, value in weights(seldom).items())
    for name in ("train_loss", "train_accuracy", "gradient_norm"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-12)


def test_looking_seldom_stops_before_anything_is_saved_and_at_the_end_of_an_epoch(monkeypatch, tmp_path):
    monkeypatch.setattr("diffvit.training.loop._READ_EVERY", {"cpu": 3})
    trained = trainer(config())
    steps = trained.steps()
    next(steps)
    trained.batches.mean = torch.full((3,), math.nan)
    next(steps)  # its figures are still on the device; the batch of this step was made before
    next(steps)
    with pytest.raises(NonFiniteStep, match="nan"):
        trained.save(RunDir(tmp_path))
    again = trainer(config())
    steps = again.steps()
    next(steps)
    again.batches.mean = torch.full((3,), math.nan)
    with pytest.raises(NonFiniteStep, match="nan"):
        list(steps)
    assert again.position.epoch == 0


def test_warming_up_shows_the_compiler_every_batch_size_and_changes_nothing(monkeypatch):
    seen = []

    def compiler(model, **settings):
        model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
        return model

    plain = trainer(config())
    assert plain.warm_up() == 0.0
    monkeypatch.setattr(torch, "compile", compiler)
    compiled = trainer(config(compile=True))
    assert compiled.warm_up() > 0.0
    assert seen == [8, 6]
    rows = [epoch_of(trained) for trained in (plain, compiled)]
    assert all(torch.equal(weights(plain)[name], value) for name, value in weights(compiled).items())
    assert rows[0]["train_loss"] == rows[1]["train_loss"]


def test_clipping_bounds_the_step_and_not_the_recorded_norm():
    free = trainer(config(optimizer={"name": "adamw"}))
    clipped = trainer(config(optimizer={"name": "adamw", "grad_clip": 1e-3}))
    for trained in (free, clipped):
        next(trained.steps())
    assert free.position.sums["gradient_norm"] == clipped.position.sums["gradient_norm"] > 1e-3
    norm = torch.cat([parameter.grad.flatten() for parameter in clipped.parameters]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_stochastic_depth_depends_on_seed_and_step_and_not_on_the_generator():
    def loss_of_a_step(seed, draws):
        trained = trainer(config(seed=0, model={"drop_path": 0.5}))
        trained.config = trained.config.model_copy(update={"seed": seed})
        torch.rand(draws)
        next(trained.steps())
        return trained.position.sums["loss"]

    assert loss_of_a_step(0, 0) == loss_of_a_step(0, 100)
    # The order and the augmentation keep their own seed here, so that only the depth differs.
    plain = trainer(config(seed=0))
    next(plain.steps())
    assert loss_of_a_step(0, 0) != plain.position.sums["loss"]


def test_time_spent_waiting_for_the_figures_is_training_time(monkeypatch):
    trained = trainer(config())
    trained.read_every = 32  # as on an accelerator
    steps = trained.steps()
    next(steps), next(steps)  # the first step's figures are looked at, the second's are pending
    read = Trainer._read

    def slow(self):
        time.sleep(0.05)
        read(self)

    monkeypatch.setattr(Trainer, "_read", slow)
    before = trained.position.seconds
    trained.running()
    assert 0.05 <= trained.position.seconds - before < 1
    after = trained.position.seconds
    trained.running()  # nothing is pending any more
    assert trained.position.seconds == after


@pytest.fixture
def _nothing_compiled():
    yield
    torch._dynamo.reset()


class Layer(nn.Module):
    """Compiled anew for every width."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.weight


@pytest.mark.usefixtures("_nothing_compiled")
def test_many_kinds_of_models_in_one_process_are_all_compiled(monkeypatch):
    graphs = []

    def backend(module, inputs):
        graphs.append(1)
        return module.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, dynamic=how["dynamic"], backend=backend))
    with compile_limits():
        for width in range(1, 13):
            assert compiled(Layer(width), parse({}), torch.device("cpu"))(torch.ones(width)).sum() == width
    assert len(graphs) == 12  # torch's usual limit is 8


@pytest.mark.parametrize(
    ("device", "accumulate", "mode"), [("cpu", 1, None), ("cuda", 1, "reduce-overhead"), ("cuda", 2, None)]
)
def test_graphs_are_for_one_pass_a_step_on_a_gpu(device, accumulate, mode, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.update(how) or model)
    compiled(Layer(1), parse({"accumulate": accumulate}), torch.device(device))
    assert asked == {"dynamic": False, "mode": mode}
