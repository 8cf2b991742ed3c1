from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App, CycloptsError
from PIL import Image

from diffvit.cli import clip_precision
from diffvit.cli.faults import explain
from diffvit.cli.main import run
from diffvit.clip.precision_report import PLOT, REPORT, main, report, update
from diffvit.clip.precision_settings import FORMATS, STRICT, modes_of
from diffvit.errors import DiffvitError
from diffvit.measuring import write


def cell(mode: str, asked: str, layout: str, size: int, ms: float, **more: Any) -> dict[str, Any]:
    return {
        **{"name": f"{mode}, {layout}", "mode": mode, "layout": layout, "asked": asked, "autocast": False},
        **{"batch_size": size, "reason": "", "observed": asked, "substituted": False, "products": {asked: 59}},
        **{"kept_bits": {}, "weight_bytes": 153_544_704, "activation_bytes": 11_239_424 * size},
        **{"seconds": [ms / 1000] * 3, "latency": dict.fromkeys(("median", "low", "high"), ms / 1000)},
        "images_per_second": dict.fromkeys(("median", "low", "high"), 1000 * size / ms),
        "speed_ratio": dict.fromkeys(("median", "low", "high"), 200 / ms),
        **more,
    }


def result(**more: Any) -> dict[str, Any]:
    rows = [
        cell(mode.name, mode.asked, layout, size, 100.0 * size)
        for size in (1, 8)
        for mode in modes_of("cpu")
        for layout in FORMATS
    ]
    drift = [
        {**{key: row[key] for key in ("name", "mode", "layout", "asked", "autocast")}, "images": 32}
        | {"cosine_min": 0.9996, "cosine_mean": 0.9998, "logit_difference": 0.25, "agreement": 0.96875}
        for row in rows[1:10]
    ]
    return {
        "benchmark": "precision",
        "settings": {"batch_sizes": [1, 8], "budget": 240.0, "images": 32, "classes": 10, "logit_scale": 100.0},
        "environment": {
            **{"hardware": "Some CPU", "device": "cpu", "threads": 2, "cores": 2, "torch": "2.13.0"},
            **{"open_clip": "3.3.0", "diffvit": "0.1.0", "date": "2026-01-01", "load": 0.1},
        },
        "encoder": {"weights": "random (seed 0)", "trained": False, "parameters": 38_316_896},
        "pictures": {"name": "CIFAR-10, test", "count": 32, "size": 224},
        "rows": rows,
        "drift": drift,
        "between": {"cosine_between": 0.5, "classes_found": 4},
        "seconds": 231.0,
        **more,
    }


def test_the_report_says_what_was_measured_and_what_was_not() -> None:
    text = report(result())
    for part in (
        *("38,316,896 parameters", "Some CPU, cpu, 2 threads (2 cores)", "torch 2.13.0", "open_clip 3.3.0"),
        *("32, CIFAR-10, test", "The weights are random", "231 s of at most 240", "Load average before the run: 0.1"),
        *("Not measured, for want of trained weights", "diffvit clip precision --weights FILE", f"]({PLOT})"),
        "| FP32 strict, contiguous | float32 | 100 (100 to 100) | 10 | 2.00 (2.00 to 2.00) | 3 | 146.4 | 10.7 |",
        "| BF16, contiguous | 32 | 0.9996000 | 0.9998000 | 0.25 | 96.9% |",
        "different images have a mean cosine of 0.500 in FP32 strict, and 4 classes of 10 come first",
    ):
        assert part in text
    assert (
        "random"
        not in report(result(encoder={"weights": "RN50.pt", "trained": True, "parameters": 1})).split("## Drift")[0]
    )


def test_a_substituted_cell_goes_by_what_it_did() -> None:
    found = result()
    for row in found["rows"]:
        if row["mode"] == "FP16":
            row |= {"observed": "bfloat16", "substituted": True}
    text = report(found)
    assert "**Substituted.** FP16, contiguous was asked for float16 and computed in bfloat16" in text
    assert "| bfloat16 (asked: FP16, contiguous) | bfloat16 |" in text
    assert "| FP16, contiguous |" not in text


def test_cells_left_out_are_listed(tmp_path: Path) -> None:
    found = result(drift=[], between=None)
    missing = found["rows"][12]
    for key in ("seconds", "latency", "images_per_second", "speed_ratio"):
        del missing[key]
    missing["reason"] = "a pass takes about 90 s, the time was too short"
    for row in found["rows"][13:]:
        row["reason"] = "its first pass found no time"
    text = report(found)
    assert "Not measured: FP16, contiguous at batch 8 (a pass takes about 90 s, the time was too short); " in text
    assert "## Drift\n\nNot measured: the time was too short." in text
    write(found, tmp_path)
    assert update(tmp_path)  # draws with holes too


def test_report_and_plot_follow_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--folder", str(tmp_path)]
    write(result(), tmp_path)
    assert main([*command, "--check"]) == 1
    assert "precision.png: was not made from precision.json. Run: make docs" in capsys.readouterr().out
    assert main(command) == 0
    assert main([*command, "--check"]) == 0
    before = (tmp_path / PLOT).read_bytes()
    with Image.open(tmp_path / PLOT) as picture:
        assert picture.size[0] > 1500
    (tmp_path / PLOT).unlink()
    assert main([*command, "--check"]) == 1
    main(command)
    assert (tmp_path / PLOT).read_bytes() == before
    (tmp_path / REPORT).write_text("edited")
    assert main([*command, "--check"]) == 1


def test_nothing_measured_is_in_order_a_report_alone_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 0
    (tmp_path / REPORT).write_text("# Report\n")
    assert update(tmp_path, check=True) == [f"{tmp_path / REPORT}: there is no result beside it"]


@pytest.mark.parametrize("text", ["not JSON", "[]", json.dumps({"benchmark": "train"})])
def test_a_damaged_result_is_bad_input(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precision.json").write_text(text)
    assert main(["--folder", str(tmp_path)]) == 3
    assert "Measure it again: diffvit clip precision" in capsys.readouterr().err


def command(*arguments: str) -> None:
    app = App(name="clip", result_action="return_value")
    app.command(clip_precision.precision)
    app(["precision", *arguments], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch-sizes", "1,many"], "--batch-sizes: must be whole numbers with commas (found '1,many')."),
        (["--batch-sizes", "0"], "--batch-sizes: must be from 1 to 4096 (found 0)."),
        (["--budget", "0"], "--budget: must be at least 1 second (found 0)."),
        (["--budget", "nan"], "--budget: must be at least 1 second (found nan)."),
        (["--images", "1"], "--images: must be from 2 to 10000 (found 1)."),
        (["--device", "tpu"], "--device: not a value it takes (tpu vs auto, cpu, cuda)"),
        (["--images", "some"], "--images: not a value it takes (some vs a whole number)."),
    ],
)
def test_bad_flags_are_usage_errors(arguments: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises((CycloptsError, DiffvitError)) as caught:
        command(*arguments, "--out", str(tmp_path / "out"), "--quiet")
    code, said = explain(caught.value)
    assert code == 2
    assert said.startswith(line)
    assert not (tmp_path / "out").exists()


def test_a_budget_too_short_for_anything_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"rows": [{"reason": "its first pass found no time"}], "drift": []}
    monkeypatch.setattr("diffvit.clip.precision.run", lambda *given, **more: nothing)
    with pytest.raises(DiffvitError) as caught:
        command("--budget", "6", "--out", str(tmp_path / "out"), "--quiet")
    code, said = explain(caught.value)
    assert (code, said.startswith("--budget: 6 seconds were too short to time a single pass.")) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_weights_file_is_read_by_the_loader_of_clip_and_refused_by_its_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "RN50.pt").write_text("no weights")
    out = str(tmp_path / "out")
    assert run(["clip", "precision", "--weights", str(tmp_path / "RN50.pt"), "--out", out, "--quiet"]) == 3
    said = capsys.readouterr().err
    assert "RN50.pt: is not a weights file" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffvit.clip import precision

    monkeypatch.setattr(precision, "run", lambda plan, **given: result(seconds=plan.budget))
    command("--batch-sizes", "1,8", "--out", str(tmp_path / "out"), "--json", "--device", "cpu")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seconds"] == 240
    assert last["report"] == str(tmp_path / "out" / REPORT)
    assert main(["--folder", str(tmp_path / "out"), "--check"]) == 0


def test_the_budget_bounds_the_full_encoder(tmp_path: Path) -> None:
    """The real thing, as short as it can be: it ends in time and writes its three files."""
    command(
        "--batch-sizes", "1", "--budget", "24", "--images", "2", "--out", str(tmp_path), "--threads", "1", "--quiet"
    )
    found = json.loads((tmp_path / "precision.json").read_text())
    strict = next(row for row in found["rows"] if row["name"] == f"{STRICT.name}, {FORMATS[0]}")
    assert not strict["reason"]
    assert found["seconds"] < 60, "a pass in float16 may end late, once"
    assert main(["--folder", str(tmp_path), "--check"]) == 0
