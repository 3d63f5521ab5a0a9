"""The setting is the process's, so each question is asked of a fresh one."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from concurrent.futures import ThreadPoolExecutor
import torch
from actlens.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    torch.ones(16, 1024, 1024)  # leaves a hole with room to spare; small buffers settle in it first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(12, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with ThreadPoolExecutor(1) as pool:
    print(pool.submit(faults).result() if {in_thread} else faults())
"""


def page_faults(**options):
    run = [sys.executable, "-c", PROGRAM.format(**options)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("in_thread", [False, True])
def test_kept_memory_is_used_again_without_page_faults(in_thread):
    kept = page_faults(keep=True, in_thread=in_thread)
    assert kept < 0.2 * page_faults(keep=False, in_thread=in_thread)
