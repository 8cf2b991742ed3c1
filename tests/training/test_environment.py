"""What a run runs on, and where it may go on."""

import pytest
import torch

from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.kernels import library
from diffvit.training import environment

FACTS = environment.describe(device="cpu", precision="bf16", threads=2, processes=1) | {"kernels": "native"}


def test_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [environment.resolve_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [environment.resolve_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        environment.resolve_device("cuda")


@pytest.mark.parametrize(
    ("avx", "amx", "capability", "cpu", "cuda"),
    [
        (True, False, (7, 5), "bf16", "fp32"),
        (False, True, (8, 0), "bf16", "bf16"),
        (False, False, (9, 0), "fp32", "bf16"),
    ],
)
def test_the_precision_is_what_the_hardware_multiplies(monkeypatch, avx, amx, capability, cpu, cuda):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert [environment.resolve_precision("auto", device) for device in ("cpu", "cuda")] == [cpu, cuda]
    assert [environment.resolve_precision(name, "cpu") for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("name", "found"),
    [("Some CPU", "Some CPU (family 25, model 17)"), ("Some CPU 7763 64-Core", "Some CPU 7763 64-Core")],
)
def test_the_processor_is_told_from_others_of_its_name(monkeypatch, tmp_path, name, found):
    cores = [f"processor\t: {core}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\n" for core in (0, 1)]
    (tmp_path / "cpuinfo").write_text("\n".join(cores))
    monkeypatch.setattr(environment, "Path", lambda _: tmp_path / "cpuinfo")
    assert environment.hardware("cpu") == found


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


def test_one_process_in_a_slurm_job_of_several_tasks_is_one_process(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "batch", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert environment.launch("cpu", "fp32").world_size == 1


def test_a_run_from_before_there_were_kernels_goes_on_without_them(tmp_path):
    before = {name: value for name, value in FACTS.items() if name != "kernels"}
    environment.refuse_differences(tmp_path, [], before, {**FACTS, "kernels": "torch", "hardware": "another"})
    with pytest.raises(ConfigError, match=r"kernels torch vs native\).*DIFFVIT_NATIVE=off"):
        environment.refuse_differences(tmp_path, [], before, FACTS)
    with pytest.raises(ConfigError, match="kernels native vs plain"):
        environment.refuse_differences(tmp_path, [], FACTS, {**FACTS, "kernels": "plain"})
