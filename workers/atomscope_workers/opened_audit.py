"""A finished audit: its bundle, wherever that lies, and, on this machine, the folder of its base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from atomscope.bundle import Bundle
from atomscope.errors import BundleError, InvalidInput
from atomscope.input_files import is_model_file
from atomscope.types.resources import Progress
from atomscope.types.spec import AuditSpec
from atomscope_workers.local_inputs import input_folder

OnSteps = Callable[[Progress], None]


class FinishedAudit:
    """The part of `AuditFiles` (`atomscope_workers.query`) that its bundle alone answers."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def spec(self) -> AuditSpec:
        return self._bundle.spec

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def shared(self) -> Mapping[str, str]:
        """Path -> key, of the files that lie in the store for several audits."""
        return self._bundle.manifest.shared or {}

    def holds(self, path: str) -> bool:
        return self._bundle.holds(path)

    def read(self, path: str) -> Path:
        return self._bundle.file(path)

    def key(self, path: str) -> str:
        """The key of `path` in the store that the bundle was opened in."""
        return self._bundle.key(path)

    def forget(self, path: str) -> None:
        self._bundle.forget(path)


class ParentAudit(FinishedAudit):
    """The `Parent` of a refit: what is read of it is compared with the digests of its manifest, once.

    A refit writes digests of its own of what it takes over, beside which damage could not be told any more.
    """

    def __init__(
        self, bundle: Bundle, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """`waiting` is entered while a file may have to be fetched."""
        super().__init__(bundle)
        self._waiting = waiting
        self._checked: set[str] = set()

    def read(self, path: str) -> Path:
        """Raises `InvalidInput` (`bundle_damaged`): another attempt would find the bundle no better."""
        try:
            with self._waiting():
                if path in self._checked:
                    return super().read(path)
                local = self.bundle.checked(path)
        except BundleError as error:
            raise InvalidInput("bundle_damaged", str(error)) from error
        self._checked.add(path)
        return local

    def forget(self, path: str) -> None:
        super().forget(path)
        self._checked.discard(path)  # it is fetched anew where it was fetched


class OpenedAudit(FinishedAudit):
    """The `AuditFiles` of a bundle opened on this machine, and of its base model's folder."""

    def __init__(self, bundle: Bundle, base_model: Path, on_progress: OnSteps) -> None:
        """Raises `InvalidInput`: `bad_path` for no folder, `input_changed` for another base model."""
        super().__init__(bundle)
        self._on_progress = on_progress
        found = input_folder(base_model, "base model", is_model_file)
        self._base = Path(found.location)
        if found.sha256 != self.spec.base_model.sha256:
            raise InvalidInput("input_changed", f"{base_model} is not the base model that was audited")

    def base(self) -> Path:
        return self._base

    def progress(self, done: int, total: int, unit: str) -> None:
        self._on_progress(Progress(done=done, total=total, unit=unit))

    def checkpoint(self) -> None:
        """Nothing stops a query but an interrupt, which raises by itself."""
