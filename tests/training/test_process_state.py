"""Training, scoring and loading leave the process that calls them as they found it."""

import atexit
import logging
import os
import signal
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffvit
from diffvit.errors import NonFiniteError
from diffvit.training import memory
from tests.training.small import small

LIGHTNING = logging.getLogger("lightning_fabric")


CHANGES = {
    **{"validation_size": 10, "batch_size": 15, "model": {"drop_path": 0.2}},
    "augment": {"flip": True, "crop": 2, "mixup": 0.2, "policy": "randaugment"},
}
config = partial(small, CHANGES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained before anything is compared: what an import changes, it changes once."""
    return diffvit.train(config(), out=tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def _as_a_caller_may_have_it(run):
    """Settings other than those that training takes, in the same process, and its own afterwards."""
    compiler = torch._dynamo.config
    level, threads = LIGHTNING.level, torch.get_num_threads()
    torch.set_num_threads(2)
    LIGHTNING.setLevel(logging.INFO)
    with compiler.patch(recompile_limit=3, fail_on_recompile_limit_hit=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        yield
    LIGHTNING.setLevel(level)
    torch.set_num_threads(threads)


def state():
    """What belongs to the process and not to a call; but for ``random``, of which beartype draws in tests."""
    compiler = torch._dynamo.config
    loggers = [logging.getLogger(name) for name in ("", "torch", "diffvit", LIGHTNING.name)]
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "numbers": (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu")),
        "compiler": compiler.get_config_copy(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "loggers": [(logger.name, logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "exit": atexit._ncallbacks(),
        "environ": dict(os.environ),
        "folder": Path.cwd(),
    }


def settings_of_the_compiler():
    compiler = torch._dynamo.config
    return compiler.recompile_limit, compiler.fail_on_recompile_limit_hit


@pytest.mark.usefixtures("_as_a_caller_may_have_it")
@pytest.mark.parametrize("compiles", [False, True])
def test_training_changes_nothing_of_the_process(compiles, tmp_path, monkeypatch):
    seen = []

    def compile_nothing(model, **_):
        seen.append(settings_of_the_compiler())
        return model

    def fail(_):
        assert torch.get_num_threads() == 1  # as the config says
        raise OSError("of the caller's own")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(memory, "_set", lambda _: pytest.fail("the allocator is the whole process's"))
    before = state()
    diffvit.train(config(compile=compiles), out=tmp_path / "done")
    assert state() == before
    wild = config(compile=compiles, optimizer={"name": "adamw", "lr": 1e37}, schedule={"warmup": 0.0})
    with pytest.raises(NonFiniteError):
        diffvit.train(wild, out=tmp_path / "wild")
    assert state() == before
    with pytest.raises(OSError, match="of the caller's own"):
        diffvit.train(config(compile=compiles), out=tmp_path / "failed", on_ready=fail)
    assert state() == before
    if compiles:
        assert min(limit for limit, _ in seen) > 100
        assert all(fails for _, fails in seen)


@pytest.mark.usefixtures("_as_a_caller_may_have_it")
def test_the_callers_random_numbers_are_not_training_s(run, tmp_path):
    again = diffvit.train(config(), out=tmp_path / "again")
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    before = state()
    diffvit.create_model("vit_tiny", depth=1)  # which draws from them
    after = state()
    assert after.pop("torch") != before.pop("torch")
    assert after == before


@pytest.mark.usefixtures("_as_a_caller_may_have_it")
@pytest.mark.parametrize(
    "use", [diffvit.evaluate, diffvit.load, lambda run: diffvit.predict(run, run.path / "red.png")]
)
def test_scoring_and_loading_change_nothing_of_the_process(use, run, monkeypatch):
    Image.new("RGB", (16, 16), "red").save(run.path / "red.png")
    monkeypatch.setattr(memory, "_set", lambda _: pytest.fail("the allocator is the whole process's"))
    before = state()
    use(run)
    assert state() == before


def test_the_command_line_keeps_freed_memory(tmp_path, monkeypatch):
    from diffvit.cli.main import run as command
    from diffvit.config import to_yaml

    asked = []
    monkeypatch.setattr(memory, "_set", lambda settings: asked.append(settings) or True)
    (tmp_path / "config.yaml").write_text(to_yaml(config()))
    assert command(["train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert len(asked) == 1
