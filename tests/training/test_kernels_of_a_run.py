"""Which kernels a run in bfloat16 on a CPU takes, says and keeps."""

import os
import signal
from functools import partial

import pytest
import safetensors.torch
import torch

from diffvit.errors import ConfigError, Interrupted
from diffvit.kernels import library
from diffvit.training.loop import train
from tests.training.small import Recorder, small

stop = partial(os.kill, os.getpid(), signal.SIGTERM)
config = partial(small, {"precision": "bf16", "model": {"patch_size": 4, "embed_dim": 32, "depth": 2}})


@pytest.mark.native
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_with_the_kernels_a_run_learns_what_it_learns_without(attention, tmp_path, monkeypatch):
    settings = config(epochs=2, model={"attention": attention, "pos_embed": "sincos-2d+rope-2d"})
    told = Recorder()
    native = train(settings, out=tmp_path / "native", progress=told)
    assert native.environment["kernels"] == "native"
    assert not any("kernels" in line for line in told.lines)
    monkeypatch.setattr(library, "_found", lambda: "no C compiler (cc, gcc or clang)")
    plain = train(settings, out=tmp_path / "plain", progress=told)
    assert plain.environment["kernels"] == "torch"
    said = "Attention runs without the compiled kernels, about 10% slower: no C compiler (cc, gcc or clang)."
    assert told.lines.count(said) == 1
    for ours, theirs in zip(native.metrics, plain.metrics, strict=True):
        assert ours["train_loss"] != theirs["train_loss"]  # rounded otherwise
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=5e-3)


@pytest.mark.native
def test_a_run_goes_on_with_the_kernels_it_began_with(tmp_path, monkeypatch):
    whole = train(config(epochs=2), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config(epochs=2), out=tmp_path / "run", progress=Recorder(epoch=1, action=stop))
    with monkeypatch.context() as without:
        without.setattr(library, "_found", lambda: "switched off by DIFFVIT_NATIVE")
        with pytest.raises(ConfigError, match="kernels native vs torch"):
            train(config(epochs=2), out=tmp_path / "run", resume=True)
    again = train(config(epochs=2), out=tmp_path / "run", resume=True)
    assert [row["train_loss"] for row in again.metrics] == [row["train_loss"] for row in whole.metrics]


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_a_run_may_train_the_plain_model_and_says_so(attention, tmp_path):
    model = {"attention": attention, "pos_embed": "sincos-2d+rope-2d"}
    fast = train(config(epochs=2, precision="fp32", model=model), out=tmp_path / "fast")
    plain = train(config(epochs=2, precision="fp32", model=model, accelerate=False), out=tmp_path / "plain")
    assert (fast.environment["kernels"], plain.environment["kernels"]) == ("torch", "plain")
    assert plain.config.accelerate == "off"
    assert plain.result["config_hash"] == fast.result["config_hash"]
    losses = [[row["train_loss"] for row in run.metrics] for run in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights = [safetensors.torch.load_file(run.path / "model.safetensors") for run in (fast, plain)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])  # rounded otherwise
