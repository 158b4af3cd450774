"""Running the command line, in this process and in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atomscope.cli import main

COMMAND = [sys.executable, "-m", "atomscope.cli"]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


def in_process(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("audit", "list")` -> what it printed and its exit status."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


def environment(**changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATOMSCOPE_")}
    return {**clean, **changes}


def in_another(*arguments: str | Path, **changes: str) -> Done:
    """The same in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment(**changes), check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)
