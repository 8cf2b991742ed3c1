"""What a run runs on, and where it may go on."""

import pytest
import torch

from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.kernels import library
from diffvit.training import environment

FACTS = {
    "threads": 2,
    "torch": "2.13.0",
    "diffvit": "0.1.0",
    "device": "cpu",
    "precision": "bf16",
    "processes": 1,
    "kernels": "native",
    "hardware": "one",
    "commit": "a",
    "data": {"fingerprint": "f" * 64},
}


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.resolve_device("auto") == "cpu"
    assert environment.resolve_device("cpu") == "cpu"
    with pytest.raises(EnvironmentFault, match="no CUDA device") as caught:
        environment.resolve_device("cuda")
    assert caught.value.exit_code == 4


def test_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [environment.resolve_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


@pytest.mark.parametrize(
    ("avx", "amx", "found"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")]
)
def test_precision_of_a_processor(monkeypatch, avx, amx, found):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert environment.resolve_precision("auto", "cpu") == found
    assert environment.resolve_precision("fp32", "cpu") == "fp32"
    assert environment.resolve_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(("capability", "found"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_precision_of_an_accelerator(monkeypatch, capability, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert environment.resolve_precision("auto", "cuda") == found


def test_description():
    facts = environment.describe(device="cpu", precision="fp32", threads=3, processes=1)
    assert facts["torch"] == torch.__version__
    assert (facts["threads"], facts["precision"], facts["device"]) == (3, "fp32", "cpu")
    assert facts["hardware"]
    assert facts["cores"] >= 1


@pytest.mark.parametrize(
    ("device", "precision", "there", "found"),
    [
        ("cpu", "bf16", True, "native"),
        ("cpu", "bf16", False, "torch"),
        ("cpu", "fp32", True, "torch"),
        ("cuda", "bf16", True, "torch"),
    ],
)
def test_kernels_are_those_that_run(monkeypatch, device, precision, there, found):
    monkeypatch.setattr(library, "kernels", lambda: object() if there else None)
    monkeypatch.setattr(library, "why_not", lambda: "" if there else "no C compiler (cc, gcc or clang)")
    assert environment.kernels(device, precision) == found
    line = environment.missed(device, precision)
    assert (line is not None) == (device == "cpu" and precision == "bf16" and not there)
    assert line is None or line.endswith("slower: no C compiler (cc, gcc or clang).")


def test_a_run_from_before_there_were_kernels_goes_on_without_them(tmp_path):
    before = {name: value for name, value in FACTS.items() if name != "kernels"}
    environment.refuse_differences(tmp_path, [], before, {**FACTS, "kernels": "torch"})
    with pytest.raises(ConfigError, match=r"kernels torch vs native\).*DIFFVIT_NATIVE=off"):
        environment.refuse_differences(tmp_path, [], before, FACTS)


def test_the_same_may_go_on(tmp_path):
    environment.refuse_differences(tmp_path, [], FACTS, {**FACTS, "hardware": "another", "commit": "b"})


def test_everything_that_differs_is_listed_in_one_line(tmp_path):
    now = {**FACTS, "threads": 4, "torch": "2.14.0", "precision": "fp32", "data": {"fingerprint": "e" * 64}}
    with pytest.raises(ConfigError) as caught:
        environment.refuse_differences(tmp_path, ["epochs 5 vs 6"], FACTS, now)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    for difference in (
        "epochs 5 vs 6",
        "threads 2 vs 4",
        "torch version 2.13.0 vs 2.14.0",
        "precision bf16 vs fp32",
        f"data fingerprint {'f' * 12} vs {'e' * 12}",
    ):
        assert difference in line
