"""Wrong commands: each one clear line on standard error, its documented exit code, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffvit import __version__
from diffvit.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(command: list[str], capsys: Captured) -> tuple[int, str]:
    """Exit code and the one line."""
    code = run(command)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return code, err.removeprefix("error: ").strip()


DIFFERENTIAL_ODD = ["--model.embed-dim", "160", "--model.num-heads", "5", "--model.attention", "differential"]
WRONG: dict[str, tuple[list[str], str]] = {
    "no class asked for": (["predict", "cifar10-vit", "a.png", "--top", "0"], "--top: must be at least 1 (found 0)"),
    "with an equals sign": (
        ["train", "--epohs=3"],
        "--epohs: unknown option; did you mean '--epochs'? See diffvit train --help.",
    ),
    "inner flag": (
        ["train", "--attention", "softmax"],
        "--attention: unknown option; did you mean '--model.attention'?",
    ),
    "misspelt inner flag": (["train", "--model.embed-dimm", "3"], "did you mean '--model.embed-dim'?"),
    "nothing like it": (["train", "--qqqqqqqq"], "--qqqqqqqq: unknown option. See"),
    "misspelt verb": (
        ["trian"],
        "trian: unknown command (have train, evaluate, predict, compare, attention, app, study, clip, data, bench)",
    ),
    "misspelt inner verb": (["data", "inf"], "inf: unknown command (have info, fetch); did you mean 'info'?"),
    "odd heads": (["train", *DIFFERENTIAL_ODD], "--model.num-heads: num_heads 5 is odd: differential attention"),
    "patch size": (
        ["train", "--model.patch-size", "5"],
        "--model.patch-size: patch_size 5 does not divide image_size 32.",
    ),
    "missing config": (["train", "nothing.yaml"], "nothing.yaml: no such config file."),
    "a folder as config": (["train", "."], ".: cannot be read as text"),
    "too many arguments": (["train", "a.yaml", "b.yaml"], "b.yaml: one argument too many."),
    "no value": (["train", "--seed"], "--seed: needs a value."),
    "not a number": (["train", "--epochs", "many"], "--epochs: not a value it takes (many vs a whole number)."),
    "not a fraction": (["train", "--optimizer.lr", "fast"], "--optimizer.lr: not a value it takes (fast vs a number)."),
    "not a choice": (
        ["train", "--data", "cifar"],
        "('cifar' vs auto, cifar10, folder, shapes); did you mean 'cifar10'?",
    ),
    "out of range": (["train", "--epochs", "0"], "--epochs: Input should be greater than or equal to 1 (found 0)."),
    "negative": (["train", "--seed", "-1"], "--seed: Input should be greater than or equal to 0 (found -1)."),
    "twice": (["train", "--epochs", "1", "--epochs", "2"], "--epochs: given more than once."),
    "unknown preset": (["train", "--model.preset", "vit_tny"], "no preset 'vit_tny' (have vit_pico, "),
    "out and resume": (["train", "--resume", "a", "--out", "b"], "--out: does not go with --resume (b vs a)."),
    "no run to evaluate": (["evaluate"], "RUN: needs a value."),
    "no image": (["predict", "run"], "IMAGE: needs a value."),
    "no run to compare": (["compare"], "RUN: needs a value."),
    "unknown split": (
        ["evaluate", "run", "--split", "tset"],
        "(tset vs test, validation, train); did you mean 'test'?",
    ),
    "unknown data set": (
        ["data", "fetch", "cifar100"],
        "no data set 'cifar100' (have cifar10). Did you mean 'cifar10'?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_code_2(case: str, capsys: Captured) -> None:
    command, expected = WRONG[case]
    code, line = fails(command, capsys)
    assert code == 2
    assert expected in line


def test_a_flag_may_repair_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("DIFFVIT_MODEL__PATCH_SIZE", "5")
    assert fails(["train"], capsys)[1].startswith("DIFFVIT_MODEL__PATCH_SIZE: ")
    code, line = fails(["train", "--model.image-size", "30", "--data", "folder"], capsys)
    assert (code, line.split(":")[0]) == (3, "data folder")


def test_missing_runs_files_and_images_are_code_3(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ["evaluate", "nothing"],
        ["evaluate", "empty"],
        ["predict", "nothing", "image.png"],
        ["compare", "nothing"],
        ["compare", "empty"],
        ["train", "--resume", "nothing"],
        ["train", "--resume", "empty"],
        ["train", "--data", "cifar10", "--data-dir", "nowhere"],
    ):
        code, line = fails(command, capsys)
        assert code == 3
        assert line.split(":")[0].endswith(command[-1] if command[0] == "train" else command[1])


def test_debug_adds_the_traceback(capsys: Captured) -> None:
    assert run(["train", "nothing.yaml", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: nothing.yaml: ")


def test_help_and_version_answer_on_standard_output(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"diffvit {__version__}\n"
    for command, words in {
        (): ["train", "evaluate", "predict", "compare", "data", "bench"],
        ("--help",): ["train", "evaluate", "predict", "compare", "data", "bench"],
        ("data",): ["info", "fetch"],
        ("bench",): ["train", "inference", "attention"],
        ("evaluate", "--help"): ["RUN", "--split", "--data", "--json", "--debug"],
        ("predict", "--help"): ["IMAGE...", "--top", "[default: 5]"],
        ("compare", "--help"): ["RUN...", "--out"],
        ("data", "info", "--help"): ["--data-dir", "--sheet"],
    }.items():
        assert run(command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert all(word in out for word in words)


def test_completion_can_be_installed(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["--install-completion", "--shell", "bash", "--output", str(tmp_path / "completion")]) == 0
    script = (tmp_path / "completion").read_text()
    assert "train" in script
    assert "diffvit" in script
    assert capsys.readouterr().err == ""
