"""The setting is the process's, so each question is asked of a fresh one."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from actlens.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
torch.ones(16, 1024, 1024)  # leaves a hole with room to spare; small buffers settle in it at first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(12, 1024, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keep):
    run = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_kept_memory_is_used_again_without_page_faults():
    assert page_faults(keep=True) < 0.2 * page_faults(keep=False)
