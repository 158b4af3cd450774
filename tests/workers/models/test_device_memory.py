"""Free memory is the least of what the host, its container and the operator allow; peaks are measured."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from atomscope_workers.models import device_memory
from atomscope_workers.models.device_memory import LIMIT_VARIABLE, free_bytes, free_host_bytes, measured_peak

CPU = torch.device("cpu")


def test_free_memory_is_that_of_the_container_where_there_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    host = psutil.virtual_memory().total
    assert 0 < free_bytes(CPU) <= host  # no control group
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(CPU) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) > 450
    (tmp_path / "memory.max").write_text("odd\n")
    assert free_bytes(CPU) > 450


def test_the_peak_of_a_block_is_measured_above_what_was_held() -> None:
    held = torch.ones(2**22)
    with measured_peak(CPU) as peak:
        for _ in range(3):
            taken = torch.ones(2**25)  # 128 MiB
            taken.square_()
            del taken
    assert 2**26 < peak.bytes < 2**29
    assert held.sum() == 2**22


def test_the_operator_may_allow_less_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "12345")
    assert free_bytes(CPU) == 12345
    assert free_host_bytes() > 12345
    monkeypatch.setenv(LIMIT_VARIABLE, str(2**60))
    assert free_bytes(CPU) <= psutil.virtual_memory().total
    for wrong in ("0", "-1", "1e9", "2 GiB"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"ATOMSCOPE_DEVICE_BYTES is '{wrong}': a whole number"):
            free_bytes(CPU)
