"""Freed memory is kept between operators, and given back at the end."""

import platform

import pytest
import torch

from updp.io.memory import kept_memory

resource = pytest.importorskip("resource", reason="Windows counts no page faults")


def new_pages(blocks: int) -> int:
    """Page faults of this process while blocks of 64 MiB are made and freed, one by one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.zeros(2**24).add_(1)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_until_the_last_user_has_ended() -> None:
    usual = new_pages(8)
    with kept_memory():
        with kept_memory():
            new_pages(2)
        kept = min(new_pages(8) for _ in range(3))  # small blocks may lie in between
    assert kept < usual / 4
    assert new_pages(8) > usual / 2
