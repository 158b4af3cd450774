"""Write `requirements/*.txt` from the environment that runs this script.

Each file is the complete closure of one extra, at the versions installed here, so that it installs with
`pip install --no-deps`: nothing is resolved, and every machine gets the same versions. To renew the locks,
install new versions into `.venv` (`pip install -U ...`), run `make lock`, then `make test`.

torch has a file of its own, since which build of it is right depends on the machine (see CONTRIBUTING.md).

    usage: lock.py [--check]

`--check` writes nothing and exits with 1 when a file differs from what would be written.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "atomscope"
APART = {"torch"}
"""Left out of every closure; their own dependencies are kept."""
PARTS = ("service", "workers", "demo", "test")
"""Extras with a file of their own; `s3` is part of two of them."""

HEADER = "# Written by scripts/lock.py (`make lock`); install with `pip install --no-deps`.\n"


class NotInstalled(Exception):  # noqa: N818
    """A dependency that the locks need is absent here, or at a version that its dependant refuses."""


def closure(requirements: list[str], extras: dict[str, list[str]]) -> dict[str, str]:
    """Installed versions of `requirements` and of all that they need, by canonical name.

    `extras` are those of the project itself, for requirements such as `atomscope[s3]`. Raises `NotInstalled`.
    """
    pending = [(Requirement(text), PROJECT) for text in requirements]
    seen: set[tuple[str, str]] = set()
    pins: dict[str, str] = {}
    while pending:
        requirement, dependant = pending.pop()
        name = canonicalize_name(requirement.name)
        if name == PROJECT:
            pending += [
                (Requirement(text), PROJECT) for extra in requirement.extras for text in extras[extra]
            ]
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise NotInstalled(f"{requirement} (of {dependant}) is not installed") from error
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise NotInstalled(f"{dependant} wants {requirement}; {found.version} is installed")
        pins[name] = found.version.partition("+")[0]
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in found.requires or []:
                child = Requirement(text)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    pending.append((child, name))
    return pins


def locks() -> dict[str, str]:
    """Content of every lock file, by file name."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    core: list[str] = pyproject["project"]["dependencies"]
    extras: dict[str, list[str]] = pyproject["project"]["optional-dependencies"]
    wanted = {"core": core, "build": pyproject["build-system"]["requires"]}
    wanted |= {extra: [*core, *extras[extra]] for extra in PARTS}
    files: dict[str, str] = {}
    for name, requirements in wanted.items():
        pins = closure(requirements, extras)
        lines = [f"{package}=={pins[package]}\n" for package in sorted(pins.keys() - APART)]
        files[f"{name}.txt"] = HEADER + "".join(lines)
    return files


def main(arguments: list[str]) -> int:
    folder = ROOT / "requirements"
    stale = [
        name
        for name, content in locks().items()
        if not (folder / name).is_file() or (folder / name).read_text() != content
    ]
    if "--check" in arguments:
        print("stale: " + ", ".join(stale) if stale else "the locks are up to date")
        return 1 if stale else 0
    for name, content in locks().items():
        (folder / name).write_text(content)
    print("wrote: " + (", ".join(stale) or "nothing new"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
