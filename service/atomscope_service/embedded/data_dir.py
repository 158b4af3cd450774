"""The folder of an embedded installation: what lies in it and who may read it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from atomscope.errors import AtomscopeError

SOCKET_PATH_LIMIT = 100
"""Bytes of a Unix socket's path; the system's own limit is 108 on Linux and 104 on macOS."""


class StackError(AtomscopeError):
    """The embedded stack cannot start or go on."""


class Child(msgspec.Struct, kw_only=True):
    """A process of the stack, as `stack.json` shows it."""

    role: str
    """`valkey`, `api`, `control` or `worker`."""
    pid: int | None
    restarts: int = 0


class StackState(msgspec.Struct, kw_only=True):
    """`stack.json`: where a running stack is; there is none while it is not ready."""

    url: str
    key_file: str
    store: str
    pid: int
    children: list[Child]


@dataclass(frozen=True)
class DataDir:
    """Paths of an embedded installation; the folder is private to its owner."""

    root: Path

    @property
    def secret_file(self) -> Path:
        return self.root / "secret"

    @property
    def key_file(self) -> Path:
        return self.root / "first-key"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.root / 'atomscope.db'}"

    @property
    def store_uri(self) -> str:
        return (self.root / "store").as_uri()

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def state_file(self) -> Path:
        return self.root / "stack.json"

    @property
    def socket(self) -> Path:
        """Valkey's socket: in the folder, or in a private temporary one when the path would be too long."""
        inside = self.root / "run" / "valkey.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
            return inside
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"atomscope-{os.getuid()}-{name}", "valkey.sock")

    @property
    def broker_url(self) -> str:
        return f"redis+socket://{self.socket}"

    def create(self) -> None:
        """Make the folders, mode 0700; raises `StackError` when another user owns one of them."""
        for folder in (self.root, self.logs, self.socket.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if folder.stat().st_uid != os.getuid():
                    raise StackError(f"{folder} belongs to another user")
                folder.chmod(0o700)
            except OSError as error:
                raise StackError(f"cannot make {folder}: {error.strerror}") from error

    def lock(self) -> IO[Any]:
        """Hold the folder for as long as the returned file is open.

        Raises `StackError`, with the address of the stack that holds it, when there is one.
        """
        file = (self.root / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            state = self.read_state()
            where = f" at {state.url}" if state is not None else ""
            raise StackError(f"a stack is running in {self.root} already{where}") from error
        return file

    def read_state(self) -> StackState | None:
        """What the running stack says of itself; None while there is none."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=StackState)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def write_state(self, state: StackState) -> None:
        """Replace `stack.json` in one step."""
        temporary = self.state_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        temporary.replace(self.state_file)

    def clear_state(self) -> None:
        self.state_file.unlink(missing_ok=True)
