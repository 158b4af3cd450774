"""While a unit's files may go over a network, its pulse is told, whatever it does with them."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atomscope.bundle import layout
from atomscope.store import LocalStore
from atomscope.types.spec import ParentRef
from atomscope.types.work import UnitOrder
from atomscope_workers.celery_context import StoreContext
from tests.sdk.bundle.golden_bundle import GOLDEN
from tests.workers.stages.units import a_spec

WORK = "projects/prj_1/audits/aud_1/a1/"
PARENT = "projects/prj_1/audits/aud_0/a1/bundle/"


class Network(LocalStore):
    """A store whose files are no local ones; it counts what is asked of it while nothing waits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.waiting = 0
        self.unwaited: list[str] = []

    @contextmanager
    def wait(self) -> Generator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def local_path(self, key: str) -> Path | None:
        return None

    def _asked(self, key: str) -> None:
        if not self.waiting:
            self.unwaited.append(key)

    def get_file(self, key: str, target: Path) -> None:
        self._asked(key)
        super().get_file(key, target)

    def get_range(self, key: str, start: int, length: int) -> bytearray:
        self._asked(key)
        return super().get_range(key, start, length)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._asked(key)
        super().put_bytes(key, data)

    def copy(self, source: str, target: str) -> None:
        self._asked(source)
        super().copy(source, target)


def test_every_file_that_a_refit_s_unit_fetches_or_sends_is_waited_for(tmp_path: Path) -> None:
    store = Network(tmp_path / "store")
    shutil.copytree(GOLDEN, tmp_path / "store" / PARENT)
    spec = msgspec.structs.replace(a_spec(), parent=ParentRef(audit_id="aud_0", location=PARENT))
    own = layout.unit_prefix(WORK, "validate", 0, 1)
    LocalStore(tmp_path / "store").put_bytes(f"{WORK}spec.json", msgspec.json.encode(spec))
    LocalStore(tmp_path / "store").put_bytes(f"{own}{layout.PLAN}", b"{}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    order = UnitOrder(
        project_id="prj_1", audit_id="aud_1", attempt=1, unit_id="unt_1", stage="project", index=0, fence=1,
        work_prefix=WORK, spec_key=f"{WORK}spec.json", winners={"validate": [1]}, heartbeat_seconds=1.0,
    )  # fmt: skip
    ctx = StoreContext(store, order, scratch, lambda done, total, unit: None, lambda: None, store.wait)
    parent = ctx.parent
    assert parent is not None
    assert parent.read(layout.DOCUMENTS).is_relative_to(scratch), "it goes with the unit"
    ctx.adopt(layout.DOCUMENTS)
    assert (ctx.read(layout.PLAN).read_bytes(), bytes(ctx.read_range(layout.PLAN, 0, 1))) == (b"{}", b"{")
    ctx.write_bytes("small", b"x")
    (ctx.scratch / "large").write_bytes(b"y")
    ctx.write("large", ctx.scratch / "large")
    assert store.unwaited == []
