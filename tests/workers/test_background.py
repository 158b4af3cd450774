"""Calls in threads beside a unit: none is lost, few run at once, and the next call tells of an error."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from atomscope.store import StoreError
from atomscope_workers.background import BackgroundCalls


def test_an_error_is_raised_by_the_next_call_and_what_waits_is_not_called() -> None:
    calls, done = BackgroundCalls("test", at_once=1, waiting=1), list[int]()

    def fail() -> None:
        raise StoreError("full")

    def add_for_long() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            calls.add(lambda: done.append(1))
            time.sleep(0.01)

    calls.add(fail)
    with pytest.raises(StoreError, match="full"):
        add_for_long()
    calls.finish()
    calls.close()
    assert len(done) < 1000


def test_whoever_adds_more_than_may_wait_waits_and_closing_waits_for_what_runs() -> None:
    calls, go, done = BackgroundCalls("test", at_once=2, waiting=3), threading.Event(), list[int]()

    def call() -> None:
        go.wait(10)
        done.append(1)

    added: list[int] = []

    def add() -> None:
        for number in range(8):
            calls.add(call)
            added.append(number)

    thread = threading.Thread(target=add)
    thread.start()
    deadline = time.monotonic() + 10
    while len(added) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(added) == 5
    go.set()
    thread.join(10)
    calls.finish()
    calls.close()
    assert len(done) == len(added) == 8


def test_pytorch_computes_in_the_threads_alone_and_outside_with_as_many_as_before() -> None:
    calls, inside = BackgroundCalls("test", at_once=2, waiting=2), list[int]()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            calls.add(lambda: inside.append(torch.get_num_threads()))
        calls.finish()
        assert inside == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        calls.close()
        torch.set_num_threads(before)
