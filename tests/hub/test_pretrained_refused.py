"""Weights that do not fit and files that are not what they claim: one line each, with the key named."""

import contextlib
import json
import os
import pickle
import resource
import struct
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffvit.errors import InputError
from diffvit.hub.pretrained import DINO, load_pretrained
from diffvit.models.vit import VisionTransformer

NAME = "vit_small_patch16_224.dino"
TINY = {
    **{"image_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1},
    **{"mlp_ratio": 1.0, "num_classes": 3},
}


def tiny():
    torch.manual_seed(0)
    return dict(VisionTransformer(**TINY).state_dict())


# What a state dict gets or, where it is None, loses; and what is said of it.
FAULTS = [
    ({"norm.weight": torch.full((64,), torch.nan)}, "norm.weight holds NaN or infinite values"),
    ({"pos_embed": torch.full((1, 5, 64), torch.inf)}, "pos_embed holds NaN or infinite values"),
    (dict.fromkeys(("norm_pre.weight", "norm_pre.bias"), torch.ones(64)), "the unexpected norm_pre.bias and 1 more"),
    ({"blocks.1.attn.qkv.bias": None}, "it lacks blocks.1.attn.qkv.bias"),
    ({"blocks.1.mlp.fc2.weight": torch.zeros(64, 63)}, "blocks.1.mlp.fc2.weight has the wrong size (64x63 vs 64x64)"),
    ({"pos_embed": torch.zeros(1, 7, 64)}, "its positions are not those of a square image (7 tokens)"),
    ({"patch_embed.proj.weight": None}, "no patch_embed.proj.weight"),
    ({"head.bias": torch.zeros(3, dtype=torch.int64)}, "head.bias does not hold dense floats (found int64)"),
    ({"head.bias": torch.zeros(0)}, "head.bias claims another size than the file has (0)"),
    ({"patch_embed.proj.weight": torch.zeros(64, 1, 8, 8)}, "1 channels vs"),
    ({"blocks.7.norm1.weight": torch.ones(64)}, "it lacks blocks.2."),
    ({"module.norm.weight": torch.ones(64)}, "holds norm.weight twice"),
    ({"epoch": 3}, "epoch is not a tensor (found a int)"),
    ({"blocks.0.attn.lambda_q1": torch.ones(64)}, "is an impossible model: num_heads"),
    (
        {"blocks.0.attn.q_norm.weight": torch.ones(60)},
        "its number of heads cannot be inferred (64 is not a multiple of 60)",
    ),
    (
        {"blocks.0.mlp.fc1.weight": torch.ones(1).expand(10**6, 10**6)},
        "blocks.0.mlp.fc1.weight claims another size than the file has (1000000x1000000)",
    ),
]


def refused(path, why, name=None):
    with pytest.raises(InputError) as caught:
        load_pretrained(name, path)
    assert why in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("change", "why"), FAULTS)
def test_weights_that_do_not_fit_name_the_key(change, why, tmp_path):
    state = {name: tensor for name, tensor in {**tiny(), **change}.items() if tensor is not None}
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"head.weight": torch.ones(5, 384), "head.bias": torch.ones(5)}, "unexpected head.bias and 1 more"),
        ({"pos_embed": torch.ones(1, 200, 384)}, "pos_embed has the wrong size (1x200x384 vs 1x197x384)"),
    ],
)
def test_weights_of_another_model_than_the_name_says(change, why, tmp_path, monkeypatch):
    monkeypatch.setitem(DINO, NAME, {**DINO[NAME], "depth": 1})
    torch.save({**VisionTransformer(**DINO[NAME]).state_dict(), **change}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", why, NAME)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def packed(path):
    """584 KB that hold 600 MB, in the way of a torch file."""
    torch.save({"norm.weight": torch.ones(4)}, path.with_suffix(".tmp"))
    with zipfile.ZipFile(path.with_suffix(".tmp")) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            out.writestr(entry.filename, bytes(60_000_000) if "/data/" in entry.filename else source.read(entry))


def overlapping(path):
    """Many entries that are the same bytes."""
    torch.save(tiny(), path)
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    fields = list(struct.unpack("<4sHHHHIIH", content[end : end + 22]))
    start, size = fields[6], fields[5]
    directory = content[start : start + size]
    fields[3], fields[4], fields[5] = fields[3] * 50, fields[4] * 50, size * 50
    path.write_bytes(content[:start] + directory * 50 + struct.pack("<4sHHHHIIH", *fields) + content[end + 22 :])


def safetensors_that_lie(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def cut_safetensors(path):
    safetensors.torch.save_file(tiny(), path)
    path.write_bytes(path.read_bytes()[:-9])


def cut_torch(path):
    torch.save(tiny(), path)
    path.write_bytes(path.read_bytes()[:-900])


def old_torch(state, path):
    """As torch before 1.6 wrote files."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


def cut_old_torch(path):
    old_torch(tiny(), path)
    path.write_bytes(path.read_bytes()[:-900])


FILES = [
    ("w.pth", lambda path: path.write_bytes(b""), "is not a weights file"),
    ("w.pth", lambda path: path.write_text("this is not a checkpoint"), "is not a weights file"),
    ("w.pth", lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "is damaged (Invalid magic number"),
    (
        "w.pth",
        lambda path: path.write_bytes(pickle.dumps({"a": Evil()}, protocol=2)),
        "holds Python objects other than",
    ),
    ("w.pth", lambda path: old_torch({"w": Evil()}, path), "holds Python objects other than weights"),
    ("w.pth", cut_old_torch, "is damaged (unexpected EOF"),
    ("w.pth", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "is cut short or damaged"),
    ("w.pth", lambda path: torch.save({"w": Evil()}, path), "holds Python objects other than weights"),
    ("w.pth", lambda path: torch.save([torch.ones(3)], path), "holds no named weights (found a list)"),
    ("w.pth", lambda path: torch.save({"teacher": {}}, path), "holds no named weights"),
    ("w.pth", lambda path: torch.save({"teacher": {"a": "b"}}, path), "a is not a tensor (found a str)"),
    ("w.pth", cut_torch, "is cut short or damaged"),
    ("w.pth", packed, "is packed, as torch.save does not do"),
    ("w.pth", overlapping, "is packed, as torch.save does not do"),
    ("w.safetensors", lambda path: path.write_bytes(b"abc"), "is not a safetensors file"),
    ("w.safetensors", safetensors_that_lie, "is damaged"),
    ("w.safetensors", cut_safetensors, "is cut short or damaged"),
    ("none.pth", lambda path: None, "cannot be read (No such file or directory)"),
    ("folder", lambda path: path.mkdir(), "cannot be read (Is a directory)"),
]


@pytest.mark.parametrize(("name", "make", "why"), FILES)
def test_files_that_are_not_what_they_claim(name, make, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for model in (None, NAME):
        refused(tmp_path / name, why, model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert not (tmp_path / "evil-was-here").exists()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_cut_or_changed_file_is_an_input_error_or_a_model(tmp_path, data):
    path = tmp_path / "w.pth"
    if not path.exists():
        torch.save(tiny(), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:  # the archive's names and the pickle lie at its ends
        place = data.draw(st.one_of(st.integers(0, 6000), st.integers(len(content) - 6000, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / "changed.pth").write_bytes(content)
    with contextlib.suppress(InputError):
        assert load_pretrained(None, tmp_path / "changed.pth").model.state_dict().keys() == tiny().keys()
