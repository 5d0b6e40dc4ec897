"""Freed memory is kept between operators, and given back at the end."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from updp.io.memory import hand_back, kept_memory

resource = pytest.importorskip("resource", reason="Windows counts no page faults")
BLOCK = 2**24  # numbers of four bytes: 64 MiB


def new_pages(blocks: int) -> int:
    """Page faults of this process while blocks are made and freed, one by one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.zeros(BLOCK).add_(1)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def figures() -> tuple[int, int, int, int]:
    """New pages as usual and with memory kept; bytes given back when asked, and in the end."""
    usual = new_pages(8)
    with kept_memory():
        with kept_memory():
            blocks = [torch.zeros(BLOCK) for _ in range(4)]
            del blocks
        kept = min(new_pages(8) for _ in range(3))  # small blocks may lie in between
        # Free blocks below one that is in use, as after work on tensors of other sizes.
        blocks = [torch.ones(BLOCK) for _ in range(4)]
        last = blocks.pop()
        del blocks
        before = resident()
        hand_back()
        asked = before - resident()
        del last
        before = resident()
    return usual, kept, asked, before - resident()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_until_the_last_user_has_ended() -> None:
    # In a process of its own: what other tests have freed would serve, too.
    code = "from tests.io.test_memory import figures; print(*figures())"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    usual, kept, asked, in_the_end = map(int, ended.stdout.split())
    assert kept < usual / 4
    assert asked > 2 * 4 * BLOCK
    assert in_the_end > 0.9 * 4 * BLOCK
