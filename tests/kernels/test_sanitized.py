"""The kernels under the compiler's sanitizers: no byte outside of a tensor is read or written, nothing is undefined."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diffvit.kernels import library

HERE = Path(__file__).parent
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror")


@pytest.mark.native
@pytest.mark.parametrize("program", ["attention_shapes", "token_shapes"])
def test_no_shape_reaches_outside_its_memory(program: str, tmp_path: Path) -> None:
    flags = [flag for flag in library.FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    flags += [*SANITIZERS, "-Wno-unused-function", f"-I{library.HERE}"]
    made = tmp_path / program
    command = [*library.compiler(), *flags, str(HERE / f"{program}.c"), "-o", str(made), "-lm"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([made], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
