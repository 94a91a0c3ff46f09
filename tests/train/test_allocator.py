"""What a process does with memory that it has freed, by the page faults of taking it again."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from llm.train.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    kept = [torch.zeros(millions * 2**20) for millions in (9, 1, 12, 3, 10)]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of a step that takes and frees 140 MiB in five tensors, after five such steps."""
    answer = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(answer.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    assert faults("keep") < faults("return") / 10
