from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.command import app
from diffvit.cli.bench import find
from diffvit.cli.main import run
from diffvit.errors import EnvironmentFault
from tools import pages, speed

Captured = pytest.CaptureFixture[str]
TINY = ["--embed-dim", "24", "--depth", "1", "--num-heads", "2", "--image-size", "16", "--batch-size", "2"]
QUICK = ["--rounds", "1", "--warmup", "0", "--threads", "1", "--device", "cpu"]


def checked(folder: str) -> list[str]:
    """What of a report is not made from the results beside it."""
    made = {Path(name): content for name, content in speed.of_folder(Path(folder)).items()}
    return pages.update(made, "speed", Path(folder), check=True)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(throughput.LARGE, "cpu", 64)
    monkeypatch.setattr(throughput.Timer, "blocked_autorange", lambda timer, **_: timer.timeit(3))


def test_train_measures_every_library_and_writes_the_report(tmp_path: Path, capsys: Captured) -> None:
    assert run(["bench", "train", *TINY, *QUICK, "--no-memory", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "1 of 1\n"
    found = json.loads(out.splitlines()[-1])
    assert {(row["ours"], row["peer"]) for row in found["rows"]} == {
        ("diffvit", "timm"),
        ("diffvit", "vit-pytorch"),
        ("diffvit", "transformers"),
        ("diffvit differential", "timm differential"),
        ("diffvit differential", "diffvit"),
    }
    assert len(found["arms"]) == 12
    assert "images/s bf16" in out
    written = json.loads((tmp_path / "reports" / "speed" / "train.json").read_text())
    assert written == {key: value for key, value in found.items() if key != "report"}
    assert Path(found["report"]).read_text().startswith("# Speed")
    assert checked("reports/speed") == []


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # rms_norm of the paper's way
def test_inference_and_attention_go_into_the_same_report(tmp_path: Path, capsys: Captured) -> None:
    few = ["--precision", "fp32", "--peers", "none", "--no-memory"]
    assert run(["bench", "inference", *TINY, *QUICK, *few, "--out", "out", "--quiet"]) == 0
    small = ["--tokens", "4,5", "--widths", "64", "--tokens-per-step", "8"]
    assert run(["bench", "attention", *QUICK, *small, "--out", "out", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"{done} of 4" for done in range(1, 5)]
    assert "diffvit over SDPA flash, fp32" in out
    found = json.loads(out.splitlines()[-1])
    assert len(found["arms"]) == 8 * 2 * 2 * 2  # ways, numbers of tokens, dtypes, passes
    assert len(found["rows"]) == 6 * 2 * 2 * 2
    times = {(a["route"], a["tokens"], a["dtype"], a["passes"]): a["seconds"][0] for a in found["arms"]}
    for row in found["rows"]:
        key = (row["tokens"], row["dtype"], row["passes"])
        assert row["ratio"] == pytest.approx(times[row["peer"], *key] / times[row["ours"], *key])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"inference.json", "inference.png", "attention.json", "attention.png", "report.md"}
    assert checked("out") == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--peers", "tim"], "--peers: no such peer ('tim' vs timm, vit-pytorch, transformers, or none); did"),
        (["train", "--peers", ""], "--peers: no such peer ('' vs timm, vit-pytorch, transformers, or none)."),
        (["train", "--compiled", "--rounds", "0"], "--rounds: must be at least 1 (found 0)."),
        (["train", "--warmup", "-1"], "--warmup: must be at least 0 (found -1)."),
        (["train", "--precision", "fp16"], "(fp16 vs both, fp32, bf16)"),
        (["train", "--threads", "-1"], "--threads: "),
        (["train", *QUICK, "--embed-dim", "24", "--num-heads", "5"], "num_heads: 5 does not divide embed_dim 24."),
        (["attention", "--widths", "100"], "--widths: must be multiples of 64"),
        (["attention", "--tokens", "16;64"], "--tokens: must be whole numbers with commas (found '16;64')."),
        (["atention"], "did you mean 'attention'?"),
        (["profile", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["profile", "--steps", "0"], "--steps: must be at least 1"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments: list[str], line: str, tmp_path: Path, capsys: Captured) -> None:
    assert run(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_one_line_and_code_4(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vit_pytorch", None)
    assert run(["bench", "train", *TINY, *QUICK]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: vit-pytorch: cannot be imported (")
    assert "pip install 'diffvit[bench]'" in err
    assert err.count("\n") == 1


def test_without_a_clone_the_verb_says_where_to_get_it(tmp_path: Path) -> None:
    elsewhere = find(tmp_path)
    assert find() is app
    for arguments in ([], ["train", "--rounds", "3"], ["profile", "a.yaml"]):
        with pytest.raises(
            EnvironmentFault,
            match=r"diffvit bench: the installed package has no benchmarks\. They are in the project's repository",
        ):
            elsewhere(arguments, exit_on_error=False, print_error=False, result_action="return_value")
