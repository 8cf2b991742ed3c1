"""Starting from trained weights: resampling against matrices written out in float64, other layouts against timm."""

import hashlib
import math
import shutil

import pytest
import safetensors.torch
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F

import diffvit
from diffvit.attention import capture
from diffvit.cli.main import run as command
from diffvit.config import parse
from diffvit.errors import ConfigError, InputError, Interrupted
from diffvit.hub.pretrained import Pretrained
from diffvit.models import pos_embed as positions
from diffvit.models.vit import VisionTransformer
from diffvit.settings import OptimizerConfig
from diffvit.training import optimizers
from diffvit.training.loop import train
from diffvit.training.task import build_model
from diffvit.training.transfer import Source, read_source, resample_patches, transfer
from tests.training.small import Recorder, pictures, small

SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
NAMES = ["a", "b", "c"]


def bicubic(old, new):
    """The matrix (new, old) of antialiased bicubic resampling (Keys' kernel, a = -1/2), entry by entry, in float64."""
    scale = max(old / new, 1.0)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) * old / new
        for column in range(old):
            x = abs(column + 0.5 - centre) / scale
            if x < 1:
                matrix[row, column] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                matrix[row, column] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return matrix / matrix.sum(1, keepdim=True)


def model_of(seed=0, **settings):
    """Every weight drawn, so that none is 0 or 1 by its kind."""
    torch.manual_seed(seed)
    model = VisionTransformer(**{**SMALL, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


def moved(theirs, classes=tuple(NAMES), known=tuple(NAMES), **settings):
    """A model of these settings that starts from ``theirs``, and what became of the weights."""
    model = model_of(1, **settings)
    return model, transfer(model, Source(theirs, "theirs", list(known), "0" * 64), list(classes))


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (16, 12), (5, 7)])
def test_a_patch_projection_is_resampled_as_by_the_pseudo_inverse_of_flexivit(old, new):
    weight = torch.randn(6, 3, old, old, generator=torch.Generator().manual_seed(0))
    resize = torch.kron(bicubic(old, new), bicubic(old, new))  # of a patch's pixels, row by row
    expected = weight.double().flatten(2) @ torch.linalg.pinv(resize)
    found = resample_patches(weight, 3, new)
    torch.testing.assert_close(found.double().flatten(2), expected, atol=1e-6, rtol=1e-6)
    theirs = timm.layers.patch_embed.resample_patch_embed(weight.double(), [new, new])
    torch.testing.assert_close(found.double(), theirs, atol=1e-5, rtol=1e-5)
    if new > old:  # a resized patch has the token of the original
        patch = torch.randn(old * old, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        token = found.double().flatten(2) @ (resize @ patch)
        torch.testing.assert_close(token, weight.double().flatten(2) @ patch, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (4, 3), (3, 2)])
def test_channels_are_summed_or_repeated_as_by_timm(old, new):
    weight = torch.randn(6, old, 4, 4)
    found = resample_patches(weight, new, 4)
    theirs = timm.models._manipulate.adapt_input_conv(new, weight.clone(), base_chans=old)
    torch.testing.assert_close(found, theirs)
    if new % old == 0 or new == 1:  # equal channels have the tokens that they had
        torch.testing.assert_close(found.sum(1), weight.sum(1))


@pytest.mark.parametrize("kind", ["learned-1d", "learned-2d", "sincos-2d", "sincos-1d+rope-2d"])
@pytest.mark.parametrize("target", ["same", "learned-1d"])
def test_positions_are_resampled_over_the_grid(kind, target):
    rope = "+rope-2d" if kind.endswith("rope-2d") else ""
    target = kind if target == "same" else target + rope
    theirs = model_of(pos_embed=kind, registers=1)
    model, report = moved(theirs, pos_embed=target, registers=1, image_size=24)
    table, own = positions.table(theirs)[0].double(), positions.table(model)[0].double()
    assert torch.equal(own[:2], table[:2])  # [CLS] and a register
    resize = torch.kron(bicubic(4, 6), bicubic(4, 6))
    torch.testing.assert_close(own[2:], resize @ table[2:], atol=1e-6, rtol=1e-5)
    assert all(name.startswith("pos_embed") for name in report.resampled)
    assert (report.fresh, report.left_over) == ([], [])
    same, _ = moved(theirs, pos_embed=target, registers=1)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(logits(same, images), logits(theirs, images))


@pytest.mark.parametrize(
    ("old", "new"), [("learned-1d", "sincos-2d"), ("none", "learned-1d"), ("learned-1d", "rope-2d")]
)
def test_positions_that_have_no_conversion_are_refused_by_name(old, new):
    with pytest.raises(InputError, match=f"pos_embed {old} vs {new}") as caught:
        moved(model_of(pos_embed=old), pos_embed=new)
    assert f"--model.pos-embed={old}" in caught.value.hint


def test_tokens_that_only_one_of_the_models_has():
    theirs = model_of(registers=2)
    model, report = moved(theirs, pool="mean")
    assert report.left_over == ["cls_token", "reg_token"]
    assert report.resampled == {"pos_embed": "3+4x4 -> 4x4"}
    assert torch.equal(model.pos_embed, theirs.pos_embed[:, 3:])
    back, report = moved(model)
    assert report.fresh == ["cls_token"]
    assert torch.equal(back.pos_embed[:, 1:], model.pos_embed)
    assert torch.equal(back.pos_embed[:, :1], model_of(1).pos_embed[:, :1])


def test_the_head_is_taken_where_the_classes_are_the_same():
    theirs = model_of()
    for classes, known in ((NAMES, NAMES), (NAMES[::-1], NAMES), (NAMES, [])):
        model, report = moved(theirs, classes, known)
        same = classes == known
        assert torch.equal(model.head.weight, theirs.head.weight) is same
        assert report.fresh == ([] if same else ["head.weight", "head.bias"])
        assert report.left_over == []
        assert len(report.taken) == len(theirs.state_dict()) - len(report.fresh)
    model, report = moved(theirs, [*NAMES, "d"], num_classes=4)
    assert report.fresh == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, model_of(1, num_classes=4).head.weight)


@pytest.mark.parametrize(
    "settings", [{}, {"pos_embed": "rope-2d", "qk_norm": "layer", "qkv_bias": False, "pool": "mean"}]
)
def test_a_differential_model_starts_as_the_softmax_one(settings):
    theirs, images = model_of(**settings), torch.randn(3, 3, 16, 16)
    model, report = moved(theirs, attention="differential-split", **settings)
    assert model.lambdas() == [1.0 * block.attn.lambda_.item() for block in model.blocks]
    for block in model.blocks:
        assert torch.equal(block.attn.qk2.weight, block.attn.qkv.weight[:32])
        torch.nn.init.zeros_(block.attn.lambda_)  # as its constructor does; model_of drew another
    assert torch.equal(logits(model, images), logits(theirs, images))
    assert report.fresh == [f"blocks.{block}.attn.lambda_" for block in (0, 1)]
    layer = capture(model, images).layers[1]
    assert (layer.lam.numpy(), layer.positive.shape) == (0.0, layer.negative.shape)
    assert torch.equal(layer.effective, layer.positive)
    F.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    assert all(block.attn.lambda_.grad.abs() > 0 for block in model.blocks)
    assert build_model(parse({"model": {**SMALL, "attention": "differential-split"}}).model, 0).lambdas() == [0.0, 0.0]


def test_what_split_differential_attention_computes():
    attention = model_of(attention="differential-split", embed_dim=8).blocks[0].attn.double()
    torch.nn.init.constant_(attention.lambda_, 0.3)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    first, second = attention.qkv(x), attention.qk2(x)
    joined = torch.zeros(2, 5, 8, dtype=torch.float64)
    maps = attention.maps(x)
    for head in (0, 1):
        part = slice(4 * head, 4 * head + 4)
        q1, k1, v = (first[..., 8 * each : 8 * each + 8][..., part] for each in range(3))
        q2, k2 = (second[..., 8 * each : 8 * each + 8][..., part] for each in range(2))
        a1, a2 = ((q @ k.mT / 2).softmax(2) for q, k in ((q1, k1), (q2, k2)))
        joined[..., part] = (a1 - 0.3 * a2) @ v
        torch.testing.assert_close(maps.effective[:, head], a1 - 0.3 * a2)
    torch.testing.assert_close(attention(x), attention.proj(joined))


MISFITS = {
    "sizes": (
        {"depth": 3, "num_heads": 4},
        ["depth 2 vs 3", "num_heads 2 vs 4", "fits: embed_dim 16", "what fits: model.depth=2"],
    ),
    "parts": (
        {"qk_norm": "rms", "qkv_bias": False},
        ["qkv_bias True vs False", "qk_norm none vs rms", "model.qkv_bias=True"],
    ),
    "layer scale": ({"layer_scale": 0.1}, ["layer_scale False vs True", "model.layer_scale=0.0"]),
    "V1": (
        {"attention": "differential"},
        ["attention softmax vs differential", "model.attention=differential-split"],
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_another_architecture_is_refused_with_what_fits_and_what_does_not(case):
    settings, expected = MISFITS[case]
    with pytest.raises(InputError) as caught:
        moved(model_of(), **settings)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224.dino"])
def test_timms_and_dinos_layouts_give_timms_features_at_another_size(name, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(name, depth=2, num_classes=0)
    state = theirs.state_dict()
    dim, heads = theirs.embed_dim, theirs.blocks[0].attn.num_heads
    file, stored = tmp_path / "w.pth", state
    if name.endswith("dino"):
        stored = {"teacher": {f"backbone.{key}": value for key, value in state.items()}, "epoch": 1}
    torch.save(stored, file)
    source = read_source(str(file), heads)
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    sizes = {"image_size": 96, "patch_size": 12, "embed_dim": dim, "depth": 2, "num_heads": heads, "mlp_ratio": 4.0}
    model = build_model(parse({"model": {**sizes, "num_classes": 3}}).model, 0)
    report = transfer(model, source, NAMES)
    assert report.resampled["pos_embed"] == "1+14x14 -> 1+8x8"
    assert (report.fresh, report.left_over) == (["head.weight", "head.bias"], [])
    other = timm.create_model(name, depth=2, num_classes=0, img_size=96, patch_size=12).eval()
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, other))
    images = torch.randn(2, 3, 96, 96)
    features = model.norm(model.blocks(model.tokens(images)))[:, 0]
    torch.testing.assert_close(features, other(images), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"pool": "mean", "registers": 2}, {"pos_embed": "learned-2d", "depth": 3}])
def test_layer_decay_has_timms_factors(settings):
    model = model_of(**settings)
    groups = optimizers.build(model, OptimizerConfig(lr=1.0, layer_decay=0.7))["adamw"].param_groups
    found = {id(each): group["peak"] for group in groups for each in group["params"]}
    names = {"class_token": model.cls_token is not None, "global_pool": "avg" if model.pool == "mean" else "token"}
    sizes = {key: value for key, value in SMALL.items() if key != "image_size"} | {"depth": len(model.blocks)}
    theirs = timm.models.VisionTransformer(img_size=16, fc_norm=False, **sizes, **names)
    expected = {}
    by_id = {id(each): name for name, each in theirs.named_parameters()}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        expected |= {by_id[id(each)]: group["lr_scale"] for each in group["params"]}
    ours = {name: found[id(each)] for name, each in model.named_parameters()}
    both = expected.keys() & ours.keys()
    assert len(both) > 20
    assert {name: ours[name] for name in both} == pytest.approx({name: expected[name] for name in both})
    stem = {ours[name] for name in ours if name.startswith(("pos_embed", "cls_", "reg_", "patch_"))}
    assert stem == {ours["patch_embed.proj.weight"]}
    optimizers.set_rates({"adamw": optimizers.build(model, OptimizerConfig(layer_decay=0.7))["adamw"]}, 0.5)


RUN = {"model": {**SMALL, "num_classes": 10}}
START = ["train", "--data", "shapes", "--shapes.train", "20", "--shapes.test", "20", "--validation-size", "0"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return train(small(RUN), out=tmp_path_factory.mktemp("begun") / "run")


def weights(run):
    return safetensors.torch.load_file(run.path / "model.safetensors")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_linear_probe_trains_the_head_alone(name, begun, tmp_path):
    recorder = Recorder()
    more = {"init_from": str(begun.path), "freeze": "backbone", "epochs": 2, "ema": 0.9, "optimizer": {"name": name}}
    probe = train(small(RUN, **more), out=tmp_path / "probe", progress=recorder)
    before, after = weights(begun), weights(probe)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.weight", "head.bias"}
    optimizer = safetensors.torch.load_file(max(probe.checkpoints.glob("step-*")) / "optimizer.safetensors")
    assert {key.split("/")[1] for key in optimizer} == changed
    assert probe.result["parameters"] == sum(each.numel() for each in before.values())
    assert "(170 trained)" in recorder.started[2]


def test_a_class_folder_of_its_own(tmp_path, begun):
    """Three classes of a folder, from a model of ten."""
    folder = pictures(tmp_path / "data", ["x", "y", "z"], train=4, test=2)
    config = small(RUN, data="folder", data_dir=str(folder), init_from=str(begun.path), model={"num_classes": 3})
    run = train(config, out=tmp_path / "run")
    assert run.environment["init_from"]["fresh"] == ["head.weight", "head.bias"]
    assert diffvit.load(run.path).settings["num_classes"] == 3


def test_a_run_records_what_it_took_and_is_resumed_without_the_file(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun.path, "source/run")
    recorder, values = Recorder(), {"init_from": "source/run", "epochs": 2, "optimizer": {"layer_decay": 0.5}}
    config = small(RUN, **values)
    whole = train(config, out="whole", progress=recorder)
    assert whole.config.init_from == str(tmp_path / "source/run")
    found = whole.environment["init_from"]
    assert found["sha256"] == begun.result["model_sha256"]
    assert sorted(found["taken"]) == sorted(weights(begun))
    assert any(f"taken {len(found['taken'])}, resampled 0, fresh 0, left over 0" in line for line in recorder.lines)

    def stop():
        raise Interrupted(2, "test", "stopped")

    with pytest.raises(Interrupted):
        train(config, out="stopped", progress=Recorder(epoch=1, action=stop))
    for lost in ("lost", "changed"):  # killed before there was a checkpoint: the weights are read again
        shutil.copytree("stopped", lost)
        shutil.rmtree(f"{lost}/checkpoints")
    assert all(
        torch.equal(each, weights(whole)[name])
        for name, each in weights(train(config, out="lost", resume=True)).items()
    )
    shutil.copy(whole.path / "model.safetensors", "source/run/model.safetensors")
    (tmp_path / "source/run/result.json").unlink()
    with pytest.raises(InputError, match="is not what the run began with"):
        train(config, out="changed", resume=True)
    shutil.rmtree("source")
    again = train(config, out="stopped", resume=True)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(whole).items())
    assert again.environment["init_from"] == found


def test_a_refused_start_is_one_line_and_leaves_no_folder(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = weights(begun)
    state["blocks.1.mlp.fc1.weight"][3, 3] = math.nan
    content = (begun.path / "model.safetensors").read_bytes()
    header = safetensors.safe_open(begun.path / "model.safetensors", "pt").metadata()
    safetensors.torch.save_file(state, "nan.safetensors", header)
    (tmp_path / "cut.safetensors").write_bytes(content[:-9])
    part = {name: tensor for name, tensor in weights(begun).items() if name.startswith("patch_embed")}
    safetensors.torch.save_file(part, "part.safetensors")
    pictures(tmp_path / "photos", "ab")
    for reference, said in (
        (str(begun.path), "embed_dim 16 vs 192"),
        ("nan.safetensors", "blocks.1.mlp.fc1.weight holds NaN or infinite values"),
        ("cut.safetensors", "announced). Give a run, a whole weights file"),
        ("nowhere", "no such run, file or packaged model"),
        ("part.safetensors", "(no pos_embed with 3 axes). Give a run, a whole weights file"),
        ("photos", "is not a run folder (it has no config.yaml, no model.safetensors). Give a run folder"),
        ("cifar10-clip", "is a CLIP"),
    ):
        assert command([*START, "--out", "new", "--init-from", reference]) == 3
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kept", ["optimiser", "weights alone"])
def test_going_on_takes_up_the_weights_and_the_optimisers_state(kept, tmp_path):
    """One step an epoch at a constant rate: one epoch and one more are two at once with the state, and not without."""
    values = {"batch_size": 40, "ema": 0.5, "schedule": {"name": "constant", "warmup": 0.0}}
    first, both = (train(small(RUN, values, epochs=n), out=tmp_path / f"{n}") for n in (1, 2))
    if kept != "optimiser":
        shutil.rmtree(first.checkpoints)
    recorder, more = Recorder(), {"init_from": str(first.path), "init_state": True, "ema": 0.0}
    second = train(small(RUN, values, **more), out=tmp_path / "second", progress=recorder)
    final = max(both.checkpoints.glob("step-*")) / "model.safetensors"
    at_once, found = safetensors.torch.load_file(final), weights(second)
    off = max((found[name] - tensor).abs().max().item() for name, tensor in at_once.items())
    assert (off < 1e-5) is (kept == "optimiser"), off
    assert kept in second.environment["init_from"]["state"].replace("optimiser state", "optimiser")
    assert any("not the same as training 2 epochs at once" in line for line in recorder.lines)


def test_the_command_that_goes_on(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = str(begun.path)
    assert command(["train", "--continue", run, "--epochs", "2", "--out", "on", "--quiet"]) == 0
    config = diffvit.RunDir.open("on").config
    assert (config.epochs, config.init_from, config.init_state, config.model) == (2, run, True, begun.config.model)
    capsys.readouterr()
    for line, code, said in (
        (["--resume", run, "--epochs", "3"], 2, f"diffvit train --continue {run} --epochs 2"),
        (["--continue", run, "--init-from", "cifar10-vit"], 2, "found cifar10-vit too"),
        (["--continue", run, "--resume", "on"], 2, "found on too"),
        (["--continue", run, "--freeze", "backbone"], 2, "nothing frozen"),
        (["--continue", "nowhere"], 3, "no such run folder"),
    ):
        assert command(["train", *line]) == code
        assert said in capsys.readouterr().err


def test_models_of_timms_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    theirs = model_of()
    given = Pretrained(theirs, "x", (0.5,) * 3, (0.5,) * 3, 16, NAMES, "timm 1.0, hub")
    monkeypatch.setattr("diffvit.training.transfer.load_pretrained", {"x": given}.__getitem__)
    source = read_source("timm:x", 2)
    content = safetensors.torch.save(theirs.state_dict())
    assert (source.classes, source.sha256) == (NAMES, hashlib.sha256(content).hexdigest())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    for name, code, said in (
        ("timm:vit_tiny_patch16_224", 4, "Fetch its weights elsewhere and give them as init_from."),
        ("vit_small_patch16_224.dino", 4, "Fetch its weights elsewhere and give them as init_from."),
        ("timm:vit_tny_patch16_224", 2, "Did you mean"),
        ("timm:nope", 2, "init_from timm:nope: no model 'nope' in timm"),
        ("timm:nope", 2, "Give a run, a whole weights file, a packaged name, timm:NAME or a DINO name."),
    ):
        assert command([*START, "--init-from", name]) == code
        assert said in (line := capsys.readouterr().err)
        assert line.startswith(("error: init_from timm:", "error: vit_small_patch16_224.dino: "))
        assert not {"--weights", "--pretrained"} & {*line.split()}
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_go_together():
    for values, said in (
        ({"init_from": "a", "whiten": True}, "whiten starts a patch projection"),
        ({"freeze": "backbone", "model": {"drop_path": 0.1}}, "drop_path has to be 0"),
        ({"objective": "contrastive", "init_from": "a"}, "are for classifiers"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse(values)
