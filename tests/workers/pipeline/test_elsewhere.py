"""The stand-in for another device refuses what a real one refuses; what it computes is what the CPU does."""

from __future__ import annotations

import pytest
import torch

from tests.workers.pipeline.elsewhere import DEVICE, Elsewhere, MixedDevicesError, elsewhere


def test_it_computes_and_what_it_gives_stays_there() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    with elsewhere() as seen:
        moved = matrix.to(DEVICE)
        made = torch.ones(3, 2, device=DEVICE)
        product = moved @ made
        moved[0] = 7.0
        back = product.cpu()
        total = float(product.sum())
    assert isinstance(product, Elsewhere)
    assert product.device == DEVICE
    assert type(back) is torch.Tensor
    torch.testing.assert_close(back, matrix @ torch.ones(3, 2))
    assert total == 30.0
    assert moved.tolist() == [[7.0, 7.0, 7.0], [3.0, 4.0, 5.0]]
    assert matrix.tolist()[0] == [0.0, 1.0, 2.0], "a copy, not the same memory"
    assert seen["aten.mm.default"] == 1


def test_two_devices_do_not_meet_in_one_operation() -> None:
    with elsewhere():
        moved = torch.ones(2, 2).to(DEVICE)
        for wrong in (
            lambda: moved @ torch.ones(2, 2),
            lambda: torch.ones(2, 2) @ moved,
            lambda: torch.cat([moved, torch.zeros(1, 2)]),
            lambda: moved.add_(torch.ones(2)),
            lambda: torch.ones(2, 2).mul_(moved),
            lambda: moved.index_add_(0, torch.tensor([0]), torch.ones(1, 2, device=DEVICE)),
        ):
            with pytest.raises(MixedDevicesError):
                wrong()
        assert (moved * torch.tensor(2.0)).tolist() == [[2.0, 2.0], [2.0, 2.0]], "one number may"
        assert moved[torch.tensor([1])].tolist() == [[1.0, 1.0]], "and so may an index"


def test_numpy_does_not_reach_it() -> None:
    with elsewhere():
        moved = torch.ones(2).to(DEVICE)
        with pytest.raises(TypeError, match="copy it to the CPU"):
            moved.numpy()
        assert moved.cpu().numpy().tolist() == [1.0, 1.0]
