"""Wrong commands: each one clear line on standard error, its documented exit code, and no traceback."""

import pytest

from diffvit import __version__
from diffvit.cli.main import run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(command, capsys):
    """Exit code and the one line."""
    code = run(command)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return code, err.removeprefix("error: ").strip()


ODD = "--model.embed-dim 160 --model.num-heads 5 --model.attention differential"
WRONG = [  # the command, and what its line has
    ("predict cifar10-vit a.png --top 0", "--top: must be at least 1 (found 0)"),
    ("train --epohs=3", "--epohs: unknown option; did you mean '--epochs'? See diffvit train --help."),
    ("train --attention softmax", "--attention: unknown option; did you mean '--model.attention'?"),
    ("train --model.embed-dimm 3", "did you mean '--model.embed-dim'?"),
    ("train --qqqqqqqq", "--qqqqqqqq: unknown option. See"),
    ("trian", "unknown command (have train, evaluate, predict, compare, attention, app, study, clip, data, bench)"),
    ("data inf", "inf: unknown command (have info, fetch); did you mean 'info'?"),
    (f"train {ODD}", "--model.num-heads: num_heads 5 is odd: differential attention"),
    ("train --model.patch-size 5", "--model.patch-size: patch_size 5 does not divide image_size 32."),
    ("train nothing.yaml", "nothing.yaml: no such config file."),
    ("train .", ".: cannot be read as text"),
    ("train a.yaml b.yaml", "b.yaml: one argument too many."),
    ("train --seed", "--seed: needs a value."),
    ("train --epochs many", "--epochs: not a value it takes (many vs a whole number)."),
    ("train --data cifar", "('cifar' vs auto, cifar10, folder, shapes, shapes-hard); did you mean 'cifar10'?"),
    ("train --epochs 0", "--epochs: Input should be greater than or equal to 1 (found 0)."),
    ("train --epochs 1 --epochs 2", "--epochs: given more than once."),
    ("train --model.preset vit_tny", "no preset 'vit_tny' (have vit_pico, "),
    ("train --resume a --out b", "--out: does not go with --resume (b vs a)."),
    ("evaluate", "RUN: needs a value."),
    ("predict run", "IMAGE: needs a value."),
    ("compare", "RUN: needs a value."),
    ("evaluate run --split tset", "(tset vs test, validation, train); did you mean 'test'?"),
    ("data fetch cifar100", "no data set 'cifar100' (have cifar10). Did you mean 'cifar10'?"),
]


@pytest.mark.parametrize(("command", "expected"), WRONG)
def test_wrong_usage_is_one_line_and_code_2(command, expected, capsys):
    code, line = fails(command.split(), capsys)
    assert code == 2
    assert expected in line


def test_missing_runs_files_and_images_are_code_3(tmp_path, capsys):
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


def test_help_and_version_answer_on_standard_output(capsys):
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


def test_completion_can_be_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["--install-completion", "--shell", "bash", "--output", str(tmp_path / "completion")]) == 0
    script = (tmp_path / "completion").read_text()
    assert "train" in script
    assert "diffvit" in script
    assert capsys.readouterr().err == ""
