"""Freed memory stays with the process, so that steps do not ask the system for the same pages again."""

import platform
import subprocess
import sys

from diffvit.training.memory import give_memory_back

COUNT_FAULTS = """
import resource, sys
import numpy as np
from diffvit.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    np.ones(16_000_000, dtype=np.uint8)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(*code, env=None):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", *code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def faults(mode):
    """Page faults of twenty allocations of the same 16 MB after the first."""
    # A fixed threshold from outside stops glibc from adapting, so that both modes start alike.
    return int(said(COUNT_FAULTS, mode, env={"MALLOC_MMAP_THRESHOLD_": "131072"}))


def test_repeated_allocations_fault_no_more():
    assert faults("keep") * 4 < faults("default")


def test_a_server_gives_memory_back_where_the_library_can(monkeypatch):
    code = "from diffvit.training.memory import give_memory_back; print(give_memory_back())"
    assert said(code) == str(sys.platform == "linux" and platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr("sys.platform", "darwin")
    assert not give_memory_back()
