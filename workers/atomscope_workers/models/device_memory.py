"""Memory of a device: what is free, and what a piece of work takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

LIMIT_VARIABLE = "ATOMSCOPE_DEVICE_BYTES"
_CGROUP = Path("/sys/fs/cgroup")
_SAMPLE_SECONDS = 0.005


def free_bytes(device: torch.device) -> int:
    """Bytes that this process could still take: of the GPU, or of the host and of its container.

    No more than `ATOMSCOPE_DEVICE_BYTES`, where others use the device too. Raises `ValueError` for one that
    is no whole number above 0.
    """
    limit = os.environ.get(LIMIT_VARIABLE)
    if limit and not (limit.isascii() and limit.isdigit() and int(limit)):
        raise ValueError(f"{LIMIT_VARIABLE} is {limit!r}: a whole number of bytes above 0 is expected")
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    return min(free, int(limit)) if limit else free


def free_host_bytes() -> int:
    """The same of the host alone, without that setting."""
    free = psutil.virtual_memory().available
    left = _left_in_container(_CGROUP)
    return free if left is None else min(free, left)


def size_text(count: int) -> str:
    """A number of bytes, in GiB, or MiB below a hundredth of one."""
    gib = 2**30
    return f"{count / gib:.2f} GiB" if count >= gib / 100 else f"{count / 2**20:.2f} MiB"


def _left_in_container(folder: Path) -> int | None:
    """Bytes below the limit of the control group (version 2), but for its file cache; None without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


@dataclass
class Peak:
    """Bytes that work took at its peak, above what the process held before; told when the block is left."""

    bytes: int = 0


@contextmanager
def measured_peak(device: torch.device) -> Generator[Peak]:
    """Measure what the block takes: of the GPU's allocator, or resident memory sampled every few ms."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    highest = [before]

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            highest[0] = max(highest[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
    peak.bytes = max(highest[0], process.memory_info().rss) - before
