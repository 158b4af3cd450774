"""The comparison of CPU and CUDA, where there is no CUDA: its exit status, its table, what it lets pass."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tests.fixtures.scripts import load_script


@pytest.fixture(scope="module")
def device_check() -> ModuleType:
    return load_script("benchmarks/device_check.py")


def test_without_cuda_it_says_so_and_exits_with_3(
    device_check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["device_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_check.main() == 3
    assert "no CUDA device" in capsys.readouterr().err
    assert "with 3 on a machine without CUDA" in " ".join((device_check.__doc__ or "").split())


def test_the_cpu_agrees_with_itself_in_every_line(
    device_check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_check.report(torch.device("cpu"), 40)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["comparison", "difference", "tolerance", "CPU", "s", "cpu", "s"]
    names = {line[:26].strip() for line in lines[1:]}
    assert {"gradients of a document", "inner products", "objective of a fit", "atoms that pass"} <= names
    assert all(float(line[26:38]) < 1e-6 for line in lines[1:])


@pytest.mark.parametrize("difference", [0.2, float("nan")])
def test_a_difference_beyond_its_tolerance_fails(
    device_check: ModuleType,
    difference: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [device_check.Line(f"{item}", item, 0.1, (0.0, 0.0)) for item in (0.1, difference)]

    def compare(device: torch.device, documents: int) -> list[object]:
        return lines

    monkeypatch.setattr(device_check, "compare", compare)
    assert not device_check.report(torch.device("cpu"), 40)
    _, within, beyond = capsys.readouterr().out.splitlines()
    assert not within.endswith("beyond")
    assert beyond.endswith("beyond")
