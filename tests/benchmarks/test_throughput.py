from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import throughput
from benchmarks.peers import build, parameters_of
from benchmarks.settings import Choice, Rounds, Sizes
from benchmarks.throughput import STEPS, Arm, batch_of, rows_of, train_step
from diffvit.errors import EnvironmentFault

TINY = Sizes(embed_dim=24, depth=1, num_heads=2, image_size=16, batch_size=2)


def test_ratios_against_a_hand_computation() -> None:
    times = {
        **{"diffvit fp32": [2.0, 4.0], "diffvit bf16": [1.0, 2.0]},
        **{"diffvit differential fp32": [3.0, 5.0], "diffvit differential bf16": [1.5, 2.0]},
        **{"timm fp32": [4.0, 4.0], "timm bf16": [3.0, 2.0]},
        **{"timm differential fp32": [6.0, 5.0], "timm differential bf16": [3.0, 6.0]},
    }
    arms = [Arm(name.rpartition(" ")[0], name.rpartition(" ")[2], False) for name in times]
    rows = list(rows_of(times, arms, "bf16"))
    assert [
        (row["ours"], row["peer"], row["dtype"], row["quantity"], row["ratio"], row["low"], row["high"]) for row in rows
    ] == [
        ("diffvit", "timm", "auto", "speed", 3.0, 2.0, 4.0),  # 4/1, 4/2
        ("diffvit differential", "timm differential", "auto", "speed", 3.25, 2.5, 4.0),  # 6/1.5, 5/2
        ("diffvit", "timm", "bf16", "speed", 2.0, 1.0, 3.0),
        ("diffvit differential", "timm differential", "bf16", "speed", 2.5, 2.0, 3.0),
        ("diffvit differential", "diffvit", "bf16", "step time", 1.25, 1.0, 1.5),  # ours over ours: 1.5/1, 2/2
        ("diffvit", "timm", "fp32", "speed", 1.5, 1.0, 2.0),
        ("diffvit differential", "timm differential", "fp32", "speed", 1.5, 1.0, 2.0),
        ("diffvit differential", "diffvit", "fp32", "step time", 1.375, 1.25, 1.5),
    ]
    assert {(row["ours_dtype"], row["peer_dtype"]) for row in rows if row["dtype"] == "auto"} == {("bf16", "fp32")}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_training_step_is_autograd_and_adamw(dtype: str) -> None:
    images, labels = batch_of(TINY, "cpu")
    ours, plain = build("diffvit", TINY), build("diffvit", TINY)
    step = train_step(ours, images, labels, dtype)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    for _ in range(2):
        step()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = plain(images)
        nn.CrossEntropyLoss()(logits.float(), labels).backward()
        optimizer.step()
    assert ours.training
    assert all(parameter.grad is None for parameter in ours.parameters())
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", STEPS)
def test_a_whole_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(throughput.LARGE, "cpu", 64)
    monkeypatch.setattr(throughput.Timer, "blocked_autorange", lambda timer, **_: timer.timeit(3))
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(throughput, "peak_memory", lambda *given: asked.append(given) or 1000)
    rounds: list[int] = []
    how, choice = Rounds(2, 1, 1), Choice(peers=("vit-pytorch",))
    found = throughput.run(
        kind, TINY, how, choice, device="cpu", threads=1, progress=lambda done, total: rounds.append(done)
    )
    assert rounds == [1, 2, 3]
    assert found["benchmark"] == kind
    models = ["diffvit", "diffvit differential", "vit-pytorch"]
    assert [(arm["model"], arm["dtype"]) for arm in found["arms"]] == [
        (model, dtype) for dtype in ("fp32", "bf16") for model in models
    ]
    assert [given[:3] for given in asked] == [(kind, arm["model"], arm["dtype"]) for arm in found["arms"]]
    for arm in found["arms"]:
        assert len(arm["seconds"]) == 2
        rates = [2 / seconds for seconds in arm["seconds"]]
        assert arm["images_per_second"] == pytest.approx(sum(rates) / 2)
        assert (arm["low"], arm["high"]) == pytest.approx((min(rates), max(rates)))
        assert arm["parameters"] == parameters_of(build(arm["model"], TINY))
        passes = 3 if kind == "train" else 1
        best = max(product["best"] for product in found["products"] if product["dtype"] == arm["dtype"])
        assert arm["mfu"] == pytest.approx(passes * arm["flops_per_image"] * arm["images_per_second"] / best)
        assert arm["peak_memory"] == 1000
    known = {"torch", "timm", "vit-pytorch", "transformers", "diffvit", "hardware", "cores", "date", "load", "threads"}
    assert known <= set(found["environment"])
    pairs = {(row["ours"], row["peer"]) for row in found["rows"]}
    assert pairs == {("diffvit", "vit-pytorch"), ("diffvit differential", "diffvit")}


def test_a_compiler_that_fails_is_one_line_and_other_faults_pass() -> None:
    def fail(error: Exception) -> None:
        raise error

    from torch._dynamo.exc import BackendCompilerFailed

    broken = BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)
    with pytest.raises(EnvironmentFault, match="diffvit fp32 compiled: cannot be compiled here") as caught:
        throughput._first_step(Arm("diffvit", "fp32", True), lambda: fail(broken))
    assert "Leave out --compiled." in caught.value.line
    with pytest.raises(ValueError, match="other"):
        throughput._first_step(Arm("diffvit", "fp32", False), lambda: fail(ValueError("other")))
    why = throughput._first_step(Arm("timm", "fp32", True), lambda: fail(broken))
    assert why.startswith("cannot be compiled here (")
    assert throughput._first_step(Arm("timm", "fp32", True), lambda: None) == ""


def test_product_rates_are_the_work_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        def __init__(self, statement: str, **_: Any) -> None:
            assert statement == "linear(x, weight)"

        def blocked_autorange(self, min_run_time: float) -> SimpleNamespace:
            return SimpleNamespace(times=[2.0, 0.5, 1.0], median=1.0)

    monkeypatch.setattr(throughput, "Timer", Timer)
    found = throughput.product_rates([(2, 3, 4), (8, 8, 8), (2, 3, 4)], ["fp32"], "cpu")
    assert [(row["rows"], row["inner"], row["columns"], row["best"], row["median"]) for row in found] == [
        (2, 3, 4, 96.0, 48.0),
        (8, 8, 8, 2048.0, 1024.0),
    ]
    later = [{**row, "best": 500.0} for row in found]
    assert [row["best"] for row in throughput.better(found, later)] == [500.0, 2048.0]
    assert throughput.peak_rate(found, "fp32") == 2048.0
    assert throughput.peak_rate(found, "bf16") is None


def test_peak_memory_of_a_process_of_its_own() -> None:
    sizes = Sizes(embed_dim=256, depth=8, num_heads=4, image_size=16, batch_size=2)
    found = throughput.peak_memory("train", "diffvit", "fp32", sizes, "cpu", 1)
    weights = 4 * parameters_of(build("diffvit", sizes))
    if found is not None:  # /proc tells it
        assert 4 * weights < found < 20 * weights  # weights, gradients and two moments at least
