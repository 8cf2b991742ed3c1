"""The house: who may import whom, and that its core stands without the extras."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("torchvision", "timm", "vit_pytorch", "transformers", "open_clip", "gradio")

# In its own process: this one has imported timm already. The finder stands before all others.
BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by a test)", name=name)

sys.meta_path.insert(0, Absent())
"""

IMPORT_ALL = """
import importlib, pkgutil
import diffvit
for module in pkgutil.walk_packages(diffvit.__path__, "diffvit."):
    if not module.name.startswith("diffvit.app.web."):  # the page, which is what its extra is for
        importlib.import_module(module.name)
for name in diffvit.__all__:
    getattr(diffvit, name)
"""

TRAIN = """
from diffvit.cli.main import run
tiny = ["--model.image-size", "16", "--model.patch-size", "8", "--model.embed-dim", "8", "--model.depth", "1"]
tiny += ["--model.num-heads", "2", "--model.attention", "differential", "--optimizer.name", "muon", "--ema", "0.9"]
tiny += ["--shapes.size", "16", "--shapes.train", "40", "--shapes.test", "10", "--validation-size", "10"]
tiny += ["--augment.flip", "--augment.crop", "2", "--augment.policy", "randaugment", "--augment.color-jitter", "0.2"]
tiny += ["--augment.erasing", "0.5", "--augment.mixup", "0.2", "--augment.cutmix", "1", "--threads", "1"]
assert run(["train", "--data", "shapes", "--epochs", "1", "--batch-size", "15", *tiny, "--out", "run", "--quiet"]) == 0
assert run(["evaluate", "run"]) == 0
assert run(["compare", "run"]) == 0
"""

LIGHT = """
import sys
import diffvit
assert set(sys.modules) & {"torch", "numpy", "pydantic", "matplotlib"} == set()
import diffvit.config, diffvit.training.run_dir
assert set(sys.modules) & {"torch", "numpy", "matplotlib"} == set()
import diffvit.reporting.render, diffvit.measuring
assert "torch" not in sys.modules
"""


def python(code, folder):
    command, caught = [sys.executable, "-c", code], {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, cwd=folder, timeout=240, **caught)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_import_contracts_hold(tmp_path):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_module_imports_and_training_works_without_the_extras(tmp_path):
    python(BLOCKED + IMPORT_ALL + TRAIN, tmp_path)
    for name in ("model.safetensors", "result.json", "report.html", "curves.png"):
        assert (tmp_path / "run" / name).is_file()


def test_the_package_configuration_run_folders_and_reports_do_without_torch(tmp_path):
    python(LIGHT, tmp_path)


def test_the_former_name_of_the_attention_package_is_the_package():
    import diffvit.interpret
    from diffvit.interpret import capture

    assert diffvit.interpret is diffvit.attention
    assert capture is diffvit.attention.capture


def test_a_function_lives_where_its_subject_lives():
    stems = {path.stem for path in (ROOT / "src" / "diffvit").rglob("*.py")}
    assert stems & {"utils", "util", "helpers", "common", "misc"} == set()
