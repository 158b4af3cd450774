"""Bundles and steered adapters on their way to this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import atomscope
from tests.sdk.client.samples import AUDIT, an_id, audit, steered
from tests.sdk.client.scenario import KEY, Ask
from tests.sdk.client.server import Answer, Got, ScriptedServer

BIG = bytes(range(256)) * 2000
FILES = {"manifest.json": b"{}", "spec.json": b'{"a": 1}', "vectors/0001.safetensors": BIG, "empty.json": b""}
STEERED = an_id("str")
DEFAULTS = {"format": "adapter", "unit": "norm", "power": None}


class Store:
    """A bundle behind signed links, with `Range`."""

    def __init__(self, server: ScriptedServer, files: dict[str, bytes] | None = None) -> None:
        self.server = server
        self.files = dict(FILES if files is None else files)
        self.token = "first"
        self.changes: dict[str, dict[str, Any]] = {}
        server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
        server.on("GET", f"/v1/audits/{AUDIT}/bundle", lambda got: Answer(200, self.listing()))
        server.on("GET", "/files/.*", self.give)

    def listing(self) -> dict[str, Any]:
        return {
            "audit_id": AUDIT,
            "format_version": 1,
            "size": sum(map(len, self.files.values())),
            "files": [{**self._entry(path), **self.changes.get(path, {})} for path in self.files],
        }

    def _entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        return {
            "path": path,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "url": f"{self.server.url}/files/{self.token}/{path}",
        }

    def give(self, got: Got) -> Answer:
        _, _, token, path = got.path.split("/", 3)
        if token != self.token:
            return Answer(403, b"<Error><Code>ExpiredToken</Code></Error>")
        content = self.files[path]
        wanted = got.headers["Range"]
        if wanted is None:
            return Answer(200, content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        told = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return Answer(206, content[start:], told)


def _download(ask: Ask, folder: Path) -> Path:
    return ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.download(folder)))


def _content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_arrives_whole_its_manifest_last_and_without_the_key(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    Store(server)
    assert _download(ask, tmp_path / "b") == tmp_path / "b"
    assert _content(tmp_path / "b") == FILES
    got = server.to("GET", "/files/.*")
    assert got[-1].path.endswith("manifest.json")
    assert all("Authorization" not in each.headers and KEY not in str(each.headers) for each in got)


def test_what_is_there_already_is_not_brought_again(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    store = Store(server)
    _download(ask, tmp_path)
    (tmp_path / "spec.json").write_bytes(b"changed!")
    store.server.got.clear()
    _download(ask, tmp_path)
    assert [got.path for got in server.to("GET", "/files/.*")] == ["/files/first/spec.json"]
    assert _content(tmp_path) == FILES


def test_a_file_goes_on_where_the_connection_broke(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    store = Store(server)
    broken = Answer(200, BIG, cut=300_000)
    server.on("GET", "/files/first/vectors/.*", broken, Answer(503, b"busy"), Answer(drop=True), store.give)
    _download(ask, tmp_path)
    assert _content(tmp_path) == FILES
    ranges = [got.headers["Range"] for got in server.to("GET", "/files/first/vectors/.*")]
    assert ranges[0] is None
    starts = {int(each.removeprefix("bytes=").removesuffix("-")) for each in ranges[1:]}
    assert len(starts) == 1
    assert 0 < starts.pop() <= 300_000


def test_an_interrupted_download_is_resumed_by_the_next(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    store = Store(server)
    server.on("GET", "/files/first/vectors/.*", Answer(200, BIG, cut=1000), Answer(drop=True))
    with pytest.raises(atomscope.APIConnectionError):
        _download(ask, tmp_path)
    assert (tmp_path / "vectors/0001.safetensors.partial").exists()
    assert not (tmp_path / "manifest.json").exists()
    server.on("GET", "/files/first/vectors/.*", store.give)
    _download(ask, tmp_path)
    assert _content(tmp_path) == FILES


def test_a_stale_beginning_is_thrown_away(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    Store(server)
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors/0001.safetensors.partial").write_bytes(b"\0" * 5000)
    (tmp_path / "spec.json.partial").write_bytes(b"\0" * 5000)
    _download(ask, tmp_path)
    assert _content(tmp_path) == FILES


def test_a_store_without_ranges_is_asked_for_the_whole(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    store = Store(server)
    server.on("GET", "/files/first/vectors/.*", Answer(200, BIG, cut=1000), Answer(200, BIG))
    _download(ask, tmp_path)
    assert _content(tmp_path) == store.files


@pytest.mark.parametrize("told", ["bytes 7-9/10", ""])
def test_another_range_than_asked_for_is_refused(
    server: ScriptedServer, ask: Ask, tmp_path: Path, told: str
) -> None:
    Store(server)
    answers = Answer(200, BIG, cut=1000), Answer(206, b"x", {"Content-Range": told})
    server.on("GET", "/files/first/vectors/.*", *answers)
    with pytest.raises(atomscope.APIError, match="another range"):
        _download(ask, tmp_path)


def test_links_that_expired_on_the_way_are_renewed(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    store = Store(server)

    def expire(got: Got) -> Answer:
        store.token = "second"
        return Answer(403, b"<Error/>")

    server.on("GET", "/files/first/.*", expire)
    _download(ask, tmp_path)
    assert _content(tmp_path) == FILES


def test_a_file_that_differs_from_its_digest_is_not_kept(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    store = Store(server)
    store.changes["spec.json"] = {"sha256": "0" * 64}
    with pytest.raises(atomscope.BundleError, match=r"spec\.json did not arrive as listed"):
        _download(ask, tmp_path)
    assert "spec.json" not in _content(tmp_path)
    assert "manifest.json" not in _content(tmp_path)


@pytest.mark.parametrize("size", [3, 9])
def test_a_file_of_another_size_than_listed_is_refused(
    server: ScriptedServer, ask: Ask, tmp_path: Path, size: int
) -> None:
    store = Store(server)
    store.changes["spec.json"] = {"size": size}
    with pytest.raises(atomscope.APIError, match="another size"):
        _download(ask, tmp_path)


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "a//b", "C:\\evil", ".hidden", "a\0b"]
)
def test_a_listed_path_never_leads_out_of_the_folder(
    server: ScriptedServer, ask: Ask, tmp_path: Path, path: str
) -> None:
    store = Store(server)
    store.changes["spec.json"] = {"path": path}
    with pytest.raises(atomscope.APIError, match="outside"):
        _download(ask, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert server.to("GET", "/files/.*") == []


def test_a_folder_of_something_else_is_left_alone(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    Store(server)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(atomscope.BundleError, match=r"thesis\.tex"):
        _download(ask, tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "vectors").symlink_to("/")
    with pytest.raises(atomscope.BundleError, match="vectors"):
        _download(ask, tmp_path)


def test_a_listing_without_a_manifest_is_refused(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    Store(server, {"spec.json": b"{}"})
    with pytest.raises(atomscope.APIError, match="manifest"):
        _download(ask, tmp_path)


def test_an_address_that_is_not_http_is_refused(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    store = Store(server)
    store.changes["spec.json"] = {"url": "file:///etc/passwd"}
    with pytest.raises(atomscope.APIError, match="not http"):
        _download(ask, tmp_path)


def _steerable(server: ScriptedServer, **names: bytes) -> None:
    files = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"weights",
        "atomscope_steering.json": json.dumps({"audit_id": AUDIT, "strengths": {"3": 0.1}}).encode(),
        **names,
    }
    listed = [{"path": p, "size": len(c), "url": f"{server.url}/f/{p}"} for p, c in files.items()]
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("POST", "/v1/steered-adapters", Answer(201, steered()))
    server.on(
        "GET", f"/v1/steered-adapters/{STEERED}/download", Answer(200, {"id": STEERED, "files": listed})
    )
    for path, content in files.items():
        server.on("GET", f"/f/{path}", Answer(200, content))


def test_steering_saves_a_peft_folder_and_saves_over_it(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    _steerable(server)
    folder = tmp_path / "steered"
    steps = [
        lambda c: c.audits.get(AUDIT),
        lambda a: a.steer({3: 0.1}, name="more"),
        lambda s: s.save(folder),
    ]
    for _ in range(2):
        assert ask(ask.steps(*steps)) == folder
    names = {"adapter_config.json", "adapter_model.safetensors", "atomscope_steering.json"}
    assert set(_content(folder)) == names
    sent = server.to("POST", "/v1/steered-adapters")[0].json()
    assert sent == {"audit": AUDIT, "strengths": {"3": 0.1}, "name": "more", **DEFAULTS}


def test_another_format_takes_the_place_of_the_one_before(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    _steerable(server)
    steps = [lambda c: c.steered_adapters.get(STEERED), lambda s: s.save(tmp_path / "s")]
    server.on("GET", f"/v1/steered-adapters/{STEERED}", Answer(200, steered()))
    ask(ask.steps(*steps))
    listed = [
        {"path": path, "size": 2, "url": f"{server.url}/g/{path}"}
        for path in ("adapter.gguf", "atomscope_steering.json")
    ]
    server.on(
        "GET", f"/v1/steered-adapters/{STEERED}/download", Answer(200, {"id": STEERED, "files": listed})
    )
    server.on("GET", "/g/.*", Answer(200, b"{}"))
    ask(ask.steps(*steps))
    assert set(_content(tmp_path / "s")) == {"adapter.gguf", "atomscope_steering.json"}


def test_a_folder_in_use_is_not_saved_into(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    _steerable(server)
    server.on("GET", f"/v1/steered-adapters/{STEERED}", Answer(200, steered()))
    (tmp_path / "adapter_config.json").write_text("my own")
    with pytest.raises(atomscope.SteeringError, match="not empty"):
        ask(ask.steps(lambda c: c.steered_adapters.get(STEERED), lambda s: s.save(tmp_path)))
    assert (tmp_path / "adapter_config.json").read_text() == "my own"


def test_a_steered_adapter_of_other_files_is_refused(
    server: ScriptedServer, ask: Ask, tmp_path: Path
) -> None:
    _steerable(server, **{"../evil": b"x"})
    made = ask.steps(
        lambda c: c.steered_adapters.create(audit=AUDIT, strengths={3: 0.1}), lambda s: s.save(tmp_path / "s")
    )
    with pytest.raises(atomscope.APIError, match="evil"):
        ask(made)
    assert not (tmp_path / "s").exists()
