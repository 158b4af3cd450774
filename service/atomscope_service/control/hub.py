"""Bringing base models from a hub at a pinned revision.

Control only moves bytes: it fetches files by name, never one that may hold a pickle or code, and checks
headers within bounds, as it does for an upload. What is in the files is read by workers alone.
`huggingface_hub` is an optional dependency; `HF_ENDPOINT` and `HF_TOKEN` are its own settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import socket
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select, update

from atomscope.errors import AtomscopeError
from atomscope.input_files import folder_digest
from atomscope.store import ObjectStore
from atomscope_service.api.problems import ProblemError
from atomscope_service.control.broker import Broker, BrokerUnavailable
from atomscope_service.db.engine import Database
from atomscope_service.db.models import ModelRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.settings import Settings
from atomscope_service.uploads.inspect import inspect_model
from atomscope_service.uploads.rules import IGNORED, check_name, check_set

logger = logging.getLogger(__name__)

HOLD_SECONDS = 120.0
"""How long the lock of an import outlives a control worker that died."""
PATIENCE = timedelta(hours=24)
"""How long an import is tried while the hub or the store is down."""


class ImportRefused(AtomscopeError):  # noqa: N818
    """The hub has no such model, or one that cannot be taken; the import fails and says why."""


def import_models(database: Database, store: ObjectStore, broker: Broker, settings: Settings) -> int:
    """Bring every model that is `importing`, one after the other; how many ended, well or not.

    The rows are the queue, and a lock in the broker keeps two control workers off one model. A fault
    that may pass (the hub, the store or the network is down) leaves the row as it is for the next round.
    """
    with database.read() as session:
        waiting = session.scalars(
            select(ModelRow)
            .where(ModelRow.source == "hub", ModelRow.status == "importing")
            .order_by(ModelRow.id)
        ).all()
    ended = 0
    for row in waiting:
        holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
        if not broker.hold(f"import:{row.id}", holder, HOLD_SECONDS):
            continue
        with _Renewed(broker, f"import:{row.id}", holder):
            ended += _import(database, store, settings, row)
    return ended


def _import(database: Database, store: ObjectStore, settings: Settings, row: ModelRow) -> bool:
    try:
        if not settings.hub_import:
            raise ImportRefused("the operator does not allow imports from a hub")
        values = _bring(store, settings, row)
    except (ImportRefused, ProblemError) as error:
        detail = error.detail if isinstance(error, ProblemError) else str(error)
        logger.warning("model %s was not imported: %s", row.id, detail)
        values = {"status": "failed", "error": detail[:2000]}
    except Exception as error:  # the hub's client lets through whatever its HTTP library raises
        if datetime.now(UTC) - row.created_at < PATIENCE:
            logger.warning("model %s will be tried again: %s: %s", row.id, type(error).__name__, error)
            return False
        logger.exception("model %s is given up", row.id)
        values = {"status": "failed", "error": f"the import failed for {PATIENCE}: {type(error).__name__}"}
    with database.write() as session:
        importing = update(ModelRow).where(ModelRow.id == row.id, ModelRow.status == "importing")
        recorded = session.scalar(importing.values(**values).returning(ModelRow.id))
        if recorded is None or values["status"] == "failed":
            # It was deleted meanwhile, or only a part of it is there.
            Repositories(session, row.project_id).deletions.add_prefix(row.prefix)
    return True


def _bring(store: ObjectStore, settings: Settings, row: ModelRow) -> dict[str, object]:
    """Fetch a model's files, check them and put them into the store; the columns of the finished row."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportRefused("imports need: pip install huggingface_hub (beside the service)")
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    if row.hub_id is None or row.revision is None:
        raise ImportRefused("the model names no hub id and revision")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint).model_info(row.hub_id, revision=row.revision, files_metadata=True)
        if info.sha != row.revision:
            raise ImportRefused(f"the hub answered with revision {info.sha}, not {row.revision}")
        names = _wanted([sibling.rfilename for sibling in info.siblings or []])
        size = sum(sibling.size or 0 for sibling in info.siblings or [] if sibling.rfilename in names)
        _check_size(size, settings)
        with tempfile.TemporaryDirectory(prefix="atomscope-import-") as scratch:
            for name in names:
                hf_hub_download(row.hub_id, name, revision=row.revision, local_dir=scratch, endpoint=endpoint)
            return _store_files(store, settings, row, Path(scratch), names)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ImportRefused(
            f"the hub has no {row.hub_id} at {row.revision}, or none that may be read"
        ) from error
    except HfHubHTTPError as error:
        if 400 <= error.response.status_code < 500:
            raise ImportRefused(f"the hub answered {error.response.status_code}") from error
        raise


def _wanted(names: list[str]) -> list[str]:
    """The files of the model; whatever else the repository holds stays there."""
    kept: list[str] = []
    for name in sorted(names):
        try:
            check_name("model", name, "hub_id")
        except ProblemError:
            continue  # another format of the same weights, code, pictures
        if name not in IGNORED:
            kept.append(name)
    check_set("model", kept, "hub_id")
    return kept


def _check_size(size: int, settings: Settings) -> None:
    if size > settings.max_model_bytes:
        raise ImportRefused(f"the model holds {size} bytes; {settings.max_model_bytes} are allowed")


def _store_files(
    store: ObjectStore, settings: Settings, row: ModelRow, folder: Path, names: list[str]
) -> dict[str, object]:
    sizes = {name: (folder / name).stat().st_size for name in names}
    _check_size(sum(sizes.values()), settings)
    architecture = inspect_model(lambda name: (folder / name).open("rb"), sizes)
    digests: dict[str, str] = {}
    for name in names:
        with (folder / name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        store.put_file(f"{row.prefix}{name}", folder / name)
    return {
        "status": "ready",
        "sha256": folder_digest(digests),
        "size": sum(sizes.values()),
        "architecture": architecture,
    }


class _Renewed:
    """Keeps a lock in the broker while its block runs."""

    def __init__(self, broker: Broker, subject: str, holder: str) -> None:
        self._broker, self._subject, self._holder = broker, subject, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="import-lock", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._broker.release(self._subject, self._holder)
        except BrokerUnavailable as error:
            logger.warning("the lock of %s is left to run out: %s", self._subject, error)

    def _renew(self) -> None:
        while not self._ended.wait(HOLD_SECONDS / 4):
            try:
                self._broker.hold(self._subject, self._holder, HOLD_SECONDS)
            except BrokerUnavailable as error:
                logger.warning("the lock of %s was not renewed: %s", self._subject, error)
