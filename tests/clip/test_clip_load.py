"""OpenAI's weights in every form give open_clip's features; archives are loaded by their SHA-256 alone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import timm
import torch
from small_clip import NAME, broken, openai_archive, openai_state, publish, random_everywhere, register, small_model

from diffvit.clip import hub
from diffvit.clip.load import load_clip, load_supervised
from diffvit.clip.zero_shot import text_fingerprint
from diffvit.errors import ConfigError, EnvironmentFault, InputError

State = dict[str, Any]
JIT_LOAD = torch.jit.load
NOTES = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


@pytest.mark.parametrize("form", ["RN50.pt", "state.pt", "state.safetensors"])
def test_features_are_open_clips(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenAI's rounding of the same tensors: the real RN50 as an archive, a small one in the other forms."""
    torch.manual_seed(0)
    if form == "RN50.pt":
        name, side = "RN50", 224
        theirs: Any = random_everywhere(open_clip.create_model(name, pretrained=None, force_quick_gelu=True))
        openai_archive(theirs, tmp_path / form, NOTES)
        publish(tmp_path / form, monkeypatch)
    else:
        name, side, theirs = NAME, 64, small_model()
        register(tmp_path, monkeypatch)
        save: Any = torch.save if form == "state.pt" else safetensors.torch.save_file
        save(openai_state(theirs), tmp_path / form)
        monkeypatch.setattr(torch.jit, "load", broken(torch.jit.load))
    theirs.load_state_dict({key: tensor.float() for key, tensor in openai_state(theirs, {}).items()})
    generator = torch.random.get_rng_state()
    clip = load_clip(name, weights=tmp_path / form)
    assert torch.equal(torch.random.get_rng_state(), generator)
    ours = clip.model.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert ours[key].dtype == tensor.dtype
        assert key.endswith("num_batches_tracked") or torch.equal(ours[key], tensor), key
    model: Any = clip.model
    assert not model.training
    images, texts = torch.randn(1, 3, side, side), open_clip.tokenize(["a photo of a cat", "a word " * 100])
    with torch.no_grad():
        for found, wanted in (
            (model.encode_image(images), theirs.encode_image(images)),
            (model.encode_text(texts), theirs.encode_text(texts)),
        ):
            assert found.dtype == wanted.dtype == torch.float32
            assert (found - wanted).abs().max() < 1e-5
    assert (clip.name, clip.pretrained, clip.source) == (name, "openai", form)
    assert clip.dtype == torch.float32
    assert f"centre crop {side}, mean 0.4815" in clip.preprocessing.words
    activations = {type(module).__name__ for key, module in model.named_modules() if "gelu" in key}
    assert activations == {"QuickGELU"}


def test_a_model_built_without_quick_gelu_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch)
    torch.save(openai_state(small_model()), tmp_path / "w.pt")
    build = hub.clip_skeleton
    monkeypatch.setattr("diffvit.clip.load.clip_skeleton", lambda name, quick_gelu: build(name, quick_gelu=False))
    with pytest.raises(InputError, match=r"mlp.gelu: has GELU where the weights were trained with QuickGELU"):
        load_clip(NAME, weights=tmp_path / "w.pt")


def test_own_training_with_the_exact_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch)
    state = small_model().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, tmp_path / "w")
    found = load_clip(NAME, None, tmp_path / "w")
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in state.items())
    assert "QuickGELU()" not in str(found.model)
    quick = load_clip(NAME, "openai", tmp_path / "w")
    before = text_fingerprint(quick.model)
    assert before != text_fingerprint(found.model)
    tensors = quick.model.state_dict()
    tensors["visual.conv1.weight"] += 1  # the fingerprint is of the text side
    assert text_fingerprint(quick.model) == before
    tensors["ln_final.bias"][3] += 1e-7
    assert text_fingerprint(quick.model) != before


def test_downloads_go_through_the_same_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch)
    torch.save(openai_state(small_model()), tmp_path / "w.pt")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config, prefer_hf_hub: str(tmp_path / "w.pt"))
    found = load_clip(NAME)
    assert found.source == f"open_clip {open_clip.__version__}, nobody/small"
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"it lacks ln_final\.bias and"):
        load_clip(NAME)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("forbidden", ["", "1"])
def test_without_a_network_one_line_says_what_to_put_where(
    forbidden: str, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFVIT_OFFLINE", forbidden)
    with pytest.raises(EnvironmentFault) as caught:
        load_clip()
    line = str(caught.value)
    assert caught.value.exit_code == 4
    assert line.startswith("RN50: its weights 'openai' could not be fetched (")
    assert "Fetch them elsewhere from https://huggingface.co/timm/resnet50_clip.openai or https://openaipublic." in line
    assert line.endswith("/RN50.pt and give them with weights FILE.")
    with pytest.raises(EnvironmentFault, match=r"resnet50\.tv2_in1k: .*resnet50-11ad3fa6\.pth and give them as a file"):
        load_supervised()


def test_a_resnet50_from_a_file_is_timms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = random_everywhere(timm.create_model("resnet50"))
    state = {name: t for name, t in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "r.pth")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        wanted = theirs(images)
    for weights, version, side in (
        ("tv-v1", "torchvision IMAGENET1K_V1 (published top-1 76.1)", "256 (bilinear"),
        ("tv-v2", "torchvision IMAGENET1K_V2 (published top-1 80.9)", "232 (bilinear"),
        ("resnet50.a1_in1k", "timm resnet50.a1_in1k", ""),
    ):
        ours = load_supervised(weights, tmp_path / "r.pth")
        assert torch.equal(ours.model(images), wanted)
        assert ours.version == version
        assert ours.preprocessing.words.startswith(f"shorter side to {side}")
    with pytest.raises(ConfigError, match=r"needs a name .* or weights FILE"):
        load_clip("RN50", None)


def test_a_classifier_of_timms_from_an_old_file_with_other_names(tmp_path: Path) -> None:
    """As efficientnet-lite0's file has it: torch before 1.6, and names of another implementation."""
    torch.manual_seed(0)
    theirs = random_everywhere(timm.create_model("tf_efficientnet_lite0"))
    state = {f"_other.{number}": tensor for number, tensor in enumerate(theirs.state_dict().values())}
    torch.save(state, tmp_path / "e.pth", _use_new_zipfile_serialization=False)
    images = torch.randn(1, 3, 64, 64)
    ours = load_supervised("timm:tf_efficientnet_lite0", tmp_path / "e.pth")
    with torch.no_grad():
        assert torch.equal(ours.model(images), theirs(images))
    assert ours.version == "timm tf_efficientnet_lite0"
    assert ours.tag is None
    assert ours.preprocessing.words.startswith("shorter side to 256 (bicubic")
    del state["_other.0"]
    torch.save(state, tmp_path / "e.pth")
    with pytest.raises(InputError, match="does not hold the weights of timm tf_efficientnet_lite0: it lacks"):
        load_supervised("timm:tf_efficientnet_lite0", tmp_path / "e.pth")
    with pytest.raises(ConfigError, match=r"is of other classes \(11821 vs ImageNet's 1000\)"):
        load_supervised("timm:vit_base_patch16_clip_224.laion2b_ft_in12k", tmp_path / "e.pth")
    with pytest.raises(ConfigError, match=r"[Dd]id you mean"):
        load_supervised("timm:tf_efficientnet_lite9", tmp_path / "e.pth")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.jit, "load", broken(torch.jit.load))


def refused(path: Path, why: str) -> None:
    with pytest.raises(InputError) as caught:
        load_clip(NAME, "openai", path)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


FAULTS: list[tuple[State, str]] = [
    (
        {"visual.layer1.0.conv1.weight": None, "visual.layer1.0.conv2.weight": None},
        "does not hold the weights of RN-small: it lacks visual.layer1.0.conv1.weight and 1 more",
    ),
    ({"ln_final.weight": torch.full((32,), torch.nan)}, "ln_final.weight holds NaN or infinite values"),
    ({"logit_scale": torch.ones(3)}, "logit_scale has the wrong size (3 vs scalar)"),
    ({"ln_final.bias": "abc"}, "ln_final.bias is not a tensor (found a str)"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("change", "why"), FAULTS)
def test_weights_that_do_not_fit_name_the_key(change: State, why: str) -> None:
    state = {name: each for name, each in {**openai_state(small_model()), **change}.items() if each is not None}
    torch.save(state, "w.pt")
    refused(Path("w.pt"), why)


@pytest.mark.usefixtures("small")
def test_archives_that_openai_did_not_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    openai_archive(small_model(), Path("w.pt"))
    refused(Path("w.pt"), "w.pt: is a TorchScript archive, which is a program: refused")
    publish(Path("w.pt"), monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", JIT_LOAD)
        assert load_clip(NAME, "openai", Path("w.pt")).name == NAME
        with pytest.raises(ConfigError, match=r"own archive, whose model has QuickGELU\. Say pretrained openai"):
            load_clip(NAME, None, Path("w.pt"))
    content = Path("w.pt").read_bytes()
    Path("w.pt").write_bytes(content[:-2000])
    refused(Path("w.pt"), "is cut short or damaged")
    Path("w.pt").write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    refused(Path("w.pt"), "is a TorchScript archive, which is a program: refused")


def test_openais_published_archives_are_known_by_the_hash_in_their_address() -> None:
    """RN50's, as OpenAI's own package names it."""
    urls = [
        open_clip.get_pretrained_cfg(name, tag)["url"] for name, tag in open_clip.list_pretrained() if tag == "openai"
    ]
    known = {url.split("/")[-2] for url in urls if url.startswith("https://openaipublic.")}
    assert "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762" in known
    assert len(known) == 9
    assert all(len(each) == 64 for each in known)
