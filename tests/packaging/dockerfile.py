"""Playing a Dockerfile's COPY and RUN instructions in a folder, without a container."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One `FROM ... AS name` and its instructions, continuation lines joined."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def parse(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile, in order."""
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages.setdefault(name, Stage(name, base))
        elif word and current is not None:
            current.instructions.append((word, " ".join(rest.split())))
    return stages


def play(
    stages: dict[str, Stage],
    name: str,
    roots: Path,
    run: Callable[[str], str | None] = lambda command: command,
) -> Path:
    """Play stage `name` under `roots/name`, standing for `/`; stages that it copies from are played first.

    Absolute paths in commands are put under that folder. `run` may change a command, or leave it out (None).
    """
    root = roots / name
    if root.exists():
        return root
    root.mkdir(parents=True)
    folder = "/"
    for word, rest in stages[name].instructions:
        if word == "WORKDIR":
            folder = rest
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            _copy(stages, rest, roots, root, folder, run)
        elif word == "RUN" and (command := run(rest)) is not None:
            _run(command, root, folder)
    return root


def _copy(
    stages: dict[str, Stage],
    rest: str,
    roots: Path,
    root: Path,
    folder: str,
    run: Callable[[str], str | None],
) -> None:
    words = rest.split()
    source = ROOT
    if words[0].startswith("--from="):
        source = play(stages, words.pop(0).removeprefix("--from="), roots, run)
    *items, target = words
    place = root / os.path.normpath(f"{folder}/{target}" if not target.startswith("/") else target).lstrip(
        "/"
    )
    for item in items:
        origin = source / item.lstrip("/")
        if origin.is_dir():
            shutil.copytree(origin, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = place / origin.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, into)


def _run(command: str, root: Path, folder: str) -> None:
    for path in ("/opt/", "/wheels", "/src"):
        command = command.replace(path, f"{root}{path}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=root / folder.lstrip("/"),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PIP_TORCH_ARGS": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"},
    )
    if done.returncode != 0:
        raise AssertionError(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
