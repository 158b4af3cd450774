"""Deterministic kernels are asked for where they have to be, and only there."""

from __future__ import annotations

import os

import pytest
import torch

from atomscope_workers.stages.determinism import deterministic

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting of the user; one that the code makes is taken back."""
    monkeypatch.setenv(WORKSPACE, "taken back")
    monkeypatch.delenv(WORKSPACE)


def test_cuda_uses_deterministic_kernels_within_it_alone() -> None:
    with deterministic(CUDA):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ[WORKSPACE] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def _broken(device: torch.device) -> None:
    with deterministic(device):
        raise RuntimeError("broken")


def test_a_failure_within_it_leaves_no_trace() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        _broken(CUDA)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_the_user_had_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic(CUDA):
            assert os.environ[WORKSPACE] == ":16:8"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cpu_is_left_as_it_is() -> None:
    with deterministic(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
        assert WORKSPACE not in os.environ
