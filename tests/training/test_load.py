import contextlib
import json
import math
import random
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffvit
from diffvit import VisionTransformer, weights
from diffvit.app.models import list_models
from diffvit.cli.main import run as cli
from diffvit.errors import InputError
from diffvit.models.attention import Attention
from diffvit.training.load import load_with_meta, own_modules
from diffvit.training.task import Task
from tests.training.small import small

SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}


def _write(path, change=None, **options):
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **options})
    meta = {
        **{"model": dict(model.settings), "classes": [str(index) for index in range(10)], "data": "noise"},
        **{"mean": [0.5] * 3, "std": [0.25] * 3, "fingerprint": "00"},
    }
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if change:
        change(meta, state)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path, {"diffvit": json.dumps(meta)})
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "differential"}, {"pos_embed": "sincos-2d", "pool": "mean"}, {"init": "mimetic", "head": "mlp"}],
)
def test_a_file_gives_the_model_back(tmp_path, options):
    model = _write(tmp_path / "m.safetensors", **options)
    state = torch.random.get_rng_state()
    found = diffvit.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not found.training
    assert found.settings == model.settings
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(found(images), model.eval()(images))


def test_a_run_folder_and_its_config(tmp_path):
    _write(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "config.yaml").write_text("epochs: 3\n")
    _, meta = load_with_meta(str(tmp_path / "run"))
    assert meta["config"] == {"epochs": 3}
    assert meta["file"] == tmp_path / "run" / "model.safetensors"
    assert (meta["mean"], meta["data"], len(meta["classes"])) == ([0.5] * 3, "noise", 10)


def test_weights_in_bf16_come_back_as_float32(tmp_path):
    _write(tmp_path / "m.safetensors", lambda _, state: state.update({"head.bias": torch.zeros(10).bfloat16()}))
    assert {parameter.dtype for parameter in diffvit.load(tmp_path / "m.safetensors").parameters()} == {torch.float32}


def test_a_packaged_name_is_checked_against_its_sum(tmp_path, monkeypatch):
    _write(tmp_path / "small.safetensors")
    checksum = weights.sha256_of(tmp_path / "small.safetensors")
    entry = {"file": "small.safetensors", "sha256": checksum, "card": "small.md"}
    (tmp_path / "registry.json").write_text(json.dumps({"small": entry}))
    monkeypatch.setattr(weights.packaged, "__defaults__", (tmp_path,))
    monkeypatch.setattr(weights.registry, "__defaults__", (tmp_path,))
    assert weights.names() == ["small"]
    assert diffvit.load("small").settings["embed_dim"] == 32
    with pytest.raises(InputError, match=r"no such run, file or packaged model \(packaged: small\)\. Did you mean 'sm"):
        diffvit.load("smal")
    data = bytearray((tmp_path / "small.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "small.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"packaged model small: small\.safetensors is damaged"):
        diffvit.load("small")
    (tmp_path / "small.safetensors").unlink()
    with pytest.raises(InputError, match=r"its file small\.safetensors is missing"):
        diffvit.load("small")


ODD = {"embed_dim": 40, "num_heads": 5, "attention": "differential"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _, state: state["norm.weight"].fill_(math.nan), "norm.weight holds NaN or infinite values"),
        (lambda _, state: [state.pop(f"norm.{name}") for name in ("weight", "bias")], "it lacks norm.bias and 1 more"),
        (lambda meta, _: meta["model"].update(depth=1_000_000_000), "(2 blocks vs 1000000000)"),
        (lambda meta, _: meta["model"].update(embed_dim=2**62), "describes an impossible model"),
        (lambda meta, _: meta["model"].update(ODD), "describes an impossible model"),
        (lambda meta, _: meta["model"].update(experts=4), "describes an impossible model: experts"),
        (lambda meta, _: meta["classes"].pop(), "its metadata classes does not fit its model (9 vs 10)"),
        (lambda meta, _: meta.pop("mean"), "its metadata mean does not fit its model (none vs 3)"),
        (lambda meta, _: meta.update(mean=[10**400, 0, 0]), "mean and std are not positive finite numbers"),
        (lambda meta, _: meta.update(std=[0.2, 0.0, 0.2]), "mean and std are not positive finite numbers"),
        (lambda meta, _: meta.pop("model"), "has no model metadata"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, change, why):
    _write(tmp_path / "m.safetensors", change)
    with pytest.raises(InputError) as caught:
        diffvit.load(tmp_path / "m.safetensors")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'm.safetensors'}: ")


def _header(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epochs: 3\nthis is a text file that poses as a checkpoint\n",
        b"\x80\x02}q\x00.",
        _header(b"{}", 2**63),
        _header(b"[1, 2]"),
        _header(b'{"a": 3}'),
        _header(b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 0]}}'),
        _header(b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}'),
        _header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}'),
        _header(b"[" * 5000),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is not a safetensors file|is cut short") as caught:
        diffvit.load(path)
    assert "\n" not in str(caught.value)


def test_missing_things_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"is not a run folder .*Give a run folder, a model\.safetensors"):
        diffvit.load(tmp_path)
    (tmp_path / "config.yaml").write_text("epochs: 1")
    with pytest.raises(InputError, match=r"has no model\.safetensors.*diffvit train --resume"):
        diffvit.load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"has lost its model\.safetensors\. Restore that file"):
        diffvit.load(tmp_path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_cut_or_changed_header_is_an_input_error_or_the_same_model(tmp_path, data):
    path = tmp_path / "m.safetensors"
    model = _write(path)
    content = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert diffvit.load(path).state_dict().keys() == model.state_dict().keys()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return diffvit.train(small(batch_size=40), out=tmp_path_factory.mktemp("finished") / "run").path


def test_forty_damaged_weights_of_a_finished_run_are_forty_refused(finished, tmp_path):
    run, draws = Path(shutil.copytree(finished, tmp_path / "run")), random.Random(0)
    file = run / "model.safetensors"
    whole = file.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")  # where the tensors begin
    assert weights.sha256_of(file) == json.loads((run / "result.json").read_text())["model_sha256"]
    for trial in range(40):
        damaged = bytearray(whole)
        place = draws.randrange(first, len(whole) - 64)
        if trial % 2:
            damaged[place] ^= 1 << draws.randrange(8)
        else:
            damaged[place : place + 64] = bytes(64)
        if damaged == whole:  # 64 bytes that were zeros already
            damaged[place] = 1
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors: is damaged") as caught:
            diffvit.load(run)
        assert "\n" not in str(caught.value)
    for use in (diffvit.evaluate, lambda run: list_models([str(run)]), lambda run: diffvit.load(run / file.name)):
        with pytest.raises(InputError, match="is damaged"):
            use(run)
    assert cli(["attention", str(run), "--index", "0"]) == 3
    file.write_bytes(whole)
    diffvit.load(run)


def test_a_run_of_before_has_no_sum_and_loads(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    del result["model_sha256"]
    (run / "result.json").write_text(json.dumps(result))
    diffvit.load(run)
    # Another's weights beside the result, and a weights file elsewhere, are none of its business.
    shutil.copy(finished / "model.safetensors", tmp_path / "alone.safetensors")
    diffvit.load(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("content", ["", "# only a comment\n", "{}\n"])
def test_an_empty_config_beside_a_model_is_no_default(finished, tmp_path, content):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "config.yaml").write_text(content)
    for use in (diffvit.load, diffvit.evaluate, lambda run: diffvit.RunDir.open(run).config):
        with pytest.raises(InputError, match=r"config\.yaml: is empty"):
            use(run)
    for command in (["evaluate", str(run)], ["train", "--resume", str(run)], ["compare", str(run)]):
        assert cli(command) == 3


class Sharper(Attention):
    """An attention of the user's own, under softmax attention's parameter names."""

    def forward(self, x):
        return 2 * super().forward(x)


class Doubled(VisionTransformer):
    def forward(self, images):
        return 2 * super().forward(images)


def _own_attention(model):
    model.blocks[0].attn.__class__ = Sharper


def _own_model(model):
    model.__class__ = Doubled


def _own_forward(model):
    attention, plain = model.blocks[0].attn, model.blocks[0].attn.forward
    attention.forward = lambda x: 2 * plain(x)


class Changed(Task):
    """Trains the model that a change leaves of the usual one."""

    def __init__(self, change=_own_attention):
        self.change = change

    def model(self, config, data):
        model = super().model(config, data)
        self.change(model)
        return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_own_attention, r"blocks\.0\.attn is \S*test_load\.Sharper"),
        (_own_model, r"the model is \S*test_load\.Doubled"),
        (lambda model: model.blocks[0].register_module("attn", Attention(16, 1)), r"blocks\.0\.attn is \S*Attention"),
        (lambda model: model.register_module("norm", torch.nn.LayerNorm(16, eps=0.1)), r"norm is \S*LayerNorm"),
        (_own_forward, r"blocks\.0\.attn is"),
        (lambda model: model.blocks[0].attn.register_forward_hook(lambda *given: 2 * given[2]), r"blocks\.0\.attn is"),
    ],
)
def test_a_model_that_cannot_be_rebuilt_is_refused_by_name(tmp_path, change, named):
    run = diffvit.train(small(batch_size=40), out=tmp_path / "run", task=Changed(change)).path
    for use in (diffvit.load, diffvit.evaluate, lambda run: list_models([str(run)])):
        with pytest.raises(InputError, match=named) as caught:
            use(run)
        assert "\n" not in str(caught.value)
    assert cli(["evaluate", str(run)]) == cli(["attention", str(run), "--index", "0"]) == 3


@pytest.mark.parametrize("pos_embed", ["none", "learned-2d", "sincos-2d+rope-2d", "rope-2d"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_every_model_of_the_settings_can_be_rebuilt(attention, pos_embed):
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    more = {"pool": "mean", "head": "mlp", "init": "mimetic", "drop_path": 0.3, "qkv_bias": False, "mlp_ratio": 1.5}
    for chosen in (sizes, sizes | more):
        state = torch.random.get_rng_state()
        model = VisionTransformer(**chosen, attention=attention, pos_embed=pos_embed)
        after = torch.random.get_rng_state()
        assert own_modules(model) == {}
        assert torch.equal(torch.random.get_rng_state(), after)
        assert not torch.equal(state, after)


def test_a_task_of_ones_own_on_a_usual_model_is_loaded(finished, tmp_path):
    run = diffvit.train(small(batch_size=40), out=tmp_path / "run", task=Changed(lambda model: None)).path
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(diffvit.load(run)(images), diffvit.load(finished)(images))
    assert json.loads((run / "environment.json").read_text())["task"].endswith("test_load.Changed")
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_resume_with_another_task_is_refused_by_name(tmp_path, capsys):
    def stop(_):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        diffvit.train(small(batch_size=40), out=run, task=Changed(), on_ready=stop)
    assert cli(["train", "--resume", str(run)]) == 3
    err = capsys.readouterr().err
    assert "test_load.Changed" in err
    assert err.count("\n") == 1
    with pytest.raises(InputError, match=r"blocks\.0\.attn"):
        diffvit.train(small(batch_size=40), out=run, task=Changed(lambda model: None), resume=True)
    environment = json.loads((run / "environment.json").read_text())
    assert diffvit.train(small(batch_size=40), out=run, task=Changed(), resume=True).finished
    # A run of before says nothing of its task.
    old = tmp_path / "old"
    with pytest.raises(KeyboardInterrupt):
        diffvit.train(small(batch_size=40), out=old, on_ready=stop)
    del environment["task"], environment["own_modules"]
    (old / "environment.json").write_text(json.dumps(environment))
    assert diffvit.train(small(batch_size=40), out=old, resume=True).finished
