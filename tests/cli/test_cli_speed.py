"""``--help`` is quick, and the installed command behaves as in the other tests."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "diffvit.cli.main"]
HEAVY = {"torch", "numpy", "matplotlib", "pyarrow", "lightning_fabric", "PIL", "safetensors", "jinja2", "einops"}


def run(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["train", "--help"],
        ["data", "info", "--help"],
        ["bench", "train", "--help"],
        ["attention", "--help"],
        ["clip", "evaluate", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(command, tmp_path):
    done = run([sys.executable, "-X", "importtime", "-m", "diffvit.cli.main", *command], tmp_path)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "cyclopts" in imported
    assert imported & HEAVY == set()


def test_the_help_of_train_shows_every_setting_with_its_meaning_and_default(tmp_path):
    done = run([*COMMAND, "train", "--help"], tmp_path)
    assert done.stderr == ""
    text = " ".join(done.stdout.replace("│", " ").split())
    for words in (
        "[CONFIG.yaml]",
        "--epochs INT Passes over the training set. [default: 50]",
        "--model.attention STR softmax (arXiv 2010.11929), differential (arXiv 2410.05258),",
        "or one of a --plugin. One of softmax, differential, differential-split,",
        "--augment.flip Horizontal flip with probability 0.5. --augment.no-flip [default: no]",
        "One of vit_pico,",
        "--resume",
        "--quiet",
        "--json",
        "--debug",
    ):
        assert words in text


def test_help_takes_little_longer_than_importing_the_libraries_that_show_it(tmp_path):
    """Processor time, the best of four in turns: machines differ, and the suite shares its cores with other work."""
    libraries = [sys.executable, "-c", "import cyclopts, pydantic, rich.console, rich.table, yaml"]
    seconds = {"help": [], "libraries": []}
    for _ in range(4):
        for name, command in (("help", [*COMMAND, "train", "--help"]), ("libraries", libraries)):
            before = os.times()
            assert run(command, tmp_path).returncode == 0
            after = os.times()
            spent = after.children_user + after.children_system - before.children_user - before.children_system
            seconds[name].append(spent)
    assert min(seconds["help"]) < 4 * min(seconds["libraries"])


def test_the_command_in_its_own_process_answers_with_a_line_and_a_code(tmp_path):
    (tmp_path / "notes.txt").write_text("not weights\n" * 100)
    for command, code in ((["train", "--epohs", "3"], 2), (["evaluate", "notes.txt"], 3)):
        done = run([*COMMAND, *command], tmp_path)
        assert done.returncode == code
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_loading_a_model_imports_no_compiler(tmp_path):
    """Torch's takes 1.5 s. Tables of positions, lambdas and [CLS] once imported it."""
    code = "import sys, diffvit; [*map(diffvit.load, ('cifar10-diffvit', 'cifar10-clip-twin'))]; print(*sys.modules)"
    done = run([sys.executable, "-c", code], tmp_path)
    assert "diffvit.models.vit" in done.stdout.split()
    assert not {"torch._dynamo", "torch._decomp.decompositions_for_rng", "torch._inductor"} & set(done.stdout.split())


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "train", "--help"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141
