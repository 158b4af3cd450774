"""Sending models, adapters and data sets."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope import AuditConfig, Client, UsageError
from tests.sdk.client.samples import (
    ADAPTER,
    AUDIT,
    DATASET,
    MODEL,
    NOW,
    adapter,
    an_id,
    audit,
    dataset,
    model,
)
from tests.sdk.client.scenario import KEY, Ask
from tests.sdk.client.server import Answer, Got, ScriptedServer, page, problem

UPLOAD = an_id("upl")


class Receiver:
    """Uploads as the service takes them: parts of `part_bytes`, joined and checked on completion."""

    def __init__(self, server: ScriptedServer, part_bytes: int = 64 << 20) -> None:
        self.server = server
        self.part_bytes = part_bytes
        self.parts: dict[tuple[int, int], bytes] = {}
        self.announced: list[dict[str, Any]] = []
        self.purpose = ""
        self.token = "first"
        server.on("POST", "/v1/uploads", self._create)
        server.on("GET", f"/v1/uploads/{UPLOAD}", lambda got: Answer(200, self._upload("pending")))
        server.on("POST", f"/v1/uploads/{UPLOAD}/complete", self._complete)
        server.on("PUT", "/parts/.*", self.take)
        server.on("POST", "/v1/datasets", lambda got: Answer(201, dataset(name=got.json()["name"])))
        server.on("POST", "/v1/adapters", lambda got: Answer(201, adapter(name=got.json()["name"])))
        server.on("POST", "/v1/models", lambda got: Answer(201, model(name=got.json()["name"])))

    def content(self, number: int) -> bytes:
        return b"".join(data for (file, _), data in sorted(self.parts.items()) if file == number)

    def take(self, got: Got) -> Answer:
        _, _, token, file, part = got.path.split("/")
        if token != self.token:
            return Answer(403, problem(403, "link_expired"))
        self.parts[int(file), int(part)] = got.body
        return Answer(200, b"", {"ETag": f'"{file}.{part}"'})

    def _create(self, got: Got) -> Answer:
        body = got.json()
        self.announced, self.purpose = body["files"], body["purpose"]
        return Answer(201, self._upload("pending"))

    def _upload(self, status: str) -> dict[str, Any]:
        files = [{**spec, "parts": self._cut(n, spec["size"])} for n, spec in enumerate(self.announced)]
        return {
            "id": UPLOAD, "purpose": self.purpose, "status": status, "files": files, "created_at": NOW,
            "expires_at": NOW, "object": "upload",
        }  # fmt: skip

    def _cut(self, file: int, size: int) -> list[dict[str, Any]]:
        starts = range(0, size, self.part_bytes) if size else [0]
        return [
            {
                "number": n,
                "offset": start,
                "size": min(self.part_bytes, size - start),
                "url": f"{self.server.url}/parts/{self.token}/{file}/{n}",
            }
            for n, start in enumerate(starts, 1)
        ]

    def _complete(self, got: Got) -> Answer:
        for number, spec in enumerate(self.announced):
            told = [part["etag"] for part in got.json()["files"][number]["parts"]]
            assert told == [f'"{number}.{part["number"]}"' for part in self._cut(number, spec["size"])]
            if hashlib.sha256(self.content(number)).hexdigest() != spec["sha256"]:
                return Answer(422, problem(422, "checksum_mismatch"))
        return Answer(200, self._upload("completed"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "my rows (1).jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 100)
    return path


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 50)
    for name in ("README.md", "training_args.bin", "optimizer.pt", "tokenizer.json", "checkpoint-9/x.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not sent")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "trainer_state.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"w" * 300)
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "onnx").mkdir()
    return folder


def test_parts_arrive_whole_and_without_the_key(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    receiver = Receiver(server, part_bytes=1000)
    made = ask(lambda c: c.datasets.create(rows))
    assert made.name == rows.name
    assert receiver.content(0) == rows.read_bytes()
    puts = server.to("PUT", ".*")
    assert [len(got.body) for got in puts] == [1000, 1000, 1000, 500]
    for got in puts:
        assert "Authorization" not in got.headers
        assert KEY not in str(got.headers)
        assert got.headers["Transfer-Encoding"] is None  # stores refuse chunked parts
    assert server.to("POST", "/v1/datasets")[0].json() == {"name": rows.name, "upload_id": UPLOAD}
    assert receiver.announced[0]["path"] == "data.jsonl"


def test_each_part_is_retried_alone(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    receiver = Receiver(server, part_bytes=2000)
    failing = [
        Answer(503, b"busy"),
        Answer(drop=True),
        receiver.take,
        Answer(500, b"<Error/>"),
        receiver.take,
    ]
    server.on("PUT", "/parts/.*", *failing)
    ask(lambda c: c.datasets.create(rows))
    assert receiver.content(0) == rows.read_bytes()
    assert [got.path[-1] for got in server.to("PUT", ".*")] == ["1", "1", "1", "2", "2"]
    assert len(server.to("POST", "/v1/uploads")) == 1


def test_a_link_that_expired_on_the_way_is_renewed(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    receiver = Receiver(server)

    def expire(got: Got) -> Answer:
        receiver.token = "second"
        return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")

    server.on("PUT", "/parts/first/.*", expire)
    ask(lambda c: c.datasets.create(rows))
    assert receiver.content(0) == rows.read_bytes()


def test_a_part_that_is_forbidden_for_good_is_raised(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    Receiver(server)
    server.on("PUT", "/parts/.*", Answer(403, problem(403, "bad_signature")))
    with pytest.raises(atomscope.PermissionDeniedError):
        ask(lambda c: c.datasets.create(rows))


def test_a_store_that_gives_no_etag_is_an_error(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    Receiver(server)
    server.on("PUT", "/parts/.*", Answer(200, b""))
    with pytest.raises(atomscope.APIError, match="ETag"):
        ask(lambda c: c.datasets.create(rows))


def test_an_empty_file_is_one_empty_part(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    receiver = Receiver(server)
    (tmp_path / "empty.jsonl").touch()
    ask(lambda c: c.datasets.create(tmp_path / "empty.jsonl"))
    assert receiver.content(0) == b""
    assert len(server.to("PUT", ".*")) == 1


def test_a_file_that_shrinks_while_it_is_sent_is_told(server: ScriptedServer, ask: Ask, rows: Path) -> None:
    receiver = Receiver(server, part_bytes=1000)

    def shrink(got: Got) -> Answer:
        rows.write_bytes(b"gone")
        return receiver.take(got)

    server.on("PUT", "/parts/first/0/1", shrink)
    with pytest.raises(atomscope.InvalidInput, match="shorter") as caught:
        ask(lambda c: c.datasets.create(rows))
    assert caught.value.code == "file_changed"


def test_memory_stays_constant_whatever_the_size_of_a_part(server: ScriptedServer, tmp_path: Path) -> None:
    size = 48 << 20
    big = tmp_path / "big.parquet"
    with big.open("wb") as sink:
        sink.truncate(size)
    taken = Receiver(server)
    server.on("POST", f"/v1/uploads/{UPLOAD}/complete", lambda got: Answer(200, taken._upload("completed")))
    held: list[int] = []

    def measure(got: Got) -> Answer:
        held.append(tracemalloc.get_traced_memory()[1])
        return Answer(200, b"", {"ETag": '"0.1"'})

    server.on("PUT", "/parts/.*", measure)
    tracemalloc.start()
    try:
        with Client(base_url=server.url, api_key=KEY) as client:
            client.datasets.create(big)
    finally:
        tracemalloc.stop()
    # One copy of the body in the server, and blocks of it in the client.
    assert held[0] < size + (12 << 20)


def test_of_a_model_only_what_the_service_takes_is_sent(server: ScriptedServer, ask: Ask, base: Path) -> None:
    receiver = Receiver(server)
    ask(lambda c: c.models.create(base, name="base"))
    assert [spec["path"] for spec in receiver.announced] == [
        "config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip


def test_an_upload_can_be_made_by_itself(server: ScriptedServer, ask: Ask, peft: Path) -> None:
    receiver = Receiver(server)
    assert ask(lambda c: c.uploads.create("adapter", peft)).status == "completed"
    sent = ["adapter_config.json", "adapter_model.safetensors"]
    assert [spec["path"] for spec in receiver.announced] == sent
    (peft / "chat_template.jinja").write_text("{{ messages }}")
    ask(lambda c: c.uploads.create("adapter", peft))
    assert sorted({spec["path"] for spec in receiver.announced}) == [*sent, "chat_template.jinja"]


def test_an_audit_sends_its_paths_first_and_keeps_its_ids(
    server: ScriptedServer, ask: Ask, peft: Path, rows: Path
) -> None:
    Receiver(server)
    server.on("GET", "/v1/(adapters|datasets)", Answer(200, page([])))
    server.on("POST", "/v1/audits", Answer(202, audit()))
    made = ask(
        lambda c: c.audits.create(
            base_model=MODEL,
            adapter=peft,
            dataset=str(rows),
            preset="paper",
            config={"alpha": 0.2},
            name="n",
            metadata={"k": "v"},
        )
    )
    assert made.id == AUDIT
    sent = server.to("POST", "/v1/audits")[0].json()
    assert sent == {
        "base_model": MODEL, "adapter": ADAPTER, "dataset": DATASET, "preset": "paper", "name": "n",
        "config": {"alpha": 0.2}, "metadata": {"k": "v"},
    }  # fmt: skip


def test_a_whole_config_is_sent_whole(server: ScriptedServer, ask: Ask) -> None:
    server.on("POST", "/v1/audits", Answer(202, audit()))
    inputs = {"base_model": MODEL, "adapter": ADAPTER, "dataset": DATASET}
    ask(lambda c: c.audits.create(**inputs, config=AuditConfig(alpha=0.2)))
    sent = server.to("POST", "/v1/audits")[0].json()
    assert sent.keys() == {*inputs, "config"}
    assert sent["config"].keys() == set(AuditConfig.__struct_fields__)


def test_content_that_the_project_holds_is_not_sent_again(
    server: ScriptedServer, ask: Ask, base: Path, rows: Path
) -> None:
    receiver = Receiver(server)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.iterdir() if path.is_file()
    }
    kept = [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    folder = hashlib.sha256(
        "".join(sorted(f"{digests[name]}  {name}\n" for name in kept)).encode()
    ).hexdigest()
    server.on(
        "GET",
        "/v1/models",
        Answer(200, page([model(5, sha256=folder, status="failed"), model(6)], "more")),
        Answer(200, page([model(7, sha256=folder)])),
    )
    known = dataset(sha256=hashlib.sha256(rows.read_bytes()).hexdigest())
    server.on("GET", "/v1/datasets", Answer(200, page([known])))
    server.on("POST", "/v1/audits", Answer(202, audit()))
    ask(lambda c: c.audits.create(base_model=base, adapter=ADAPTER, dataset=rows))
    assert server.to("POST", "/v1/audits")[0].json()["base_model"] == an_id("mdl", 7)
    assert receiver.announced == []


def test_the_same_bytes_in_another_format_are_another_data_set(
    server: ScriptedServer, ask: Ask, rows: Path
) -> None:
    receiver = Receiver(server)
    known = dataset(sha256=hashlib.sha256(rows.read_bytes()).hexdigest())
    server.on("GET", "/v1/datasets", Answer(200, page([known])))
    server.on("POST", "/v1/audits", Answer(202, audit()))
    text = rows.rename(rows.with_suffix(".txt"))
    ask(lambda c: c.audits.create(base_model=MODEL, adapter=ADAPTER, dataset=text))
    assert [spec["path"] for spec in receiver.announced] == ["data.txt"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"base_model": "no/such/folder"}, "neither the id of a model"),
        ({"base_model": ADAPTER}, "begin with mdl_"),
        ({"base_model": "mdl_short"}, "neither the id"),
        ({"base_model": "with\0nul"}, "neither the id"),
        ({"base_model": Path("nowhere")}, "no such file"),
        ({"dataset": "ROWS.docx"}, r"\.jsonl, \.json, \.parquet, \.csv, \.tsv, \.txt, \.ndjson, not"),
        ({"adapter": "EMPTY"}, "no adapter_config.json and no adapter_model.safetensors"),
        ({"adapter": "PICKLED"}, "pickled"),
        ({"adapter": "TRAINED"}, r"no adapter_model.safetensors; there is one in checkpoint-10$"),
        ({"base_model": "ROWS.txt"}, "is a folder"),
        ({"config": {"alfa": 1}}, "alfa"),
        ({"config": {"alpha": -1}}, "alpha"),
        ({"config": AuditConfig(alpha=-1.0)}, "alpha"),
        ({"config": {"alpha": float("inf")}}, "alpha"),
        ({"preset": "best"}, "no preset 'best'; one of default, top-components, paper"),
        ({"preset": "paper", "config": {"codes": "nonnegative"}}, "must be `signed`"),
        ({"preset": "paper", "config": AuditConfig()}, "gives every setting"),
    ],
)
def test_what_cannot_be_audited_is_told_before_anything_is_sent(
    server: ScriptedServer,
    ask: Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ROWS.txt").touch()
    Path("ROWS.docx").touch()
    Path("EMPTY").mkdir()
    Path("PICKLED").mkdir()
    Path("PICKLED/adapter_config.json").touch()
    Path("PICKLED/adapter_model.bin").touch()
    Path("TRAINED/checkpoint-10").mkdir(parents=True)
    for name in ("adapter_config.json", "training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        Path("TRAINED", name).touch()
    Path("TRAINED/checkpoint-10/adapter_model.safetensors").touch()
    inputs = {"base_model": MODEL, "adapter": ADAPTER, "dataset": DATASET, **given}
    with pytest.raises(UsageError, match=told):
        ask(lambda c: c.audits.create(**inputs))
    assert server.got == []


def test_a_path_that_is_named_like_an_id_is_given_as_a_path(
    server: ScriptedServer, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    peft.rename(tmp_path / ADAPTER)
    receiver = Receiver(server)
    server.on("GET", "/v1/adapters", Answer(200, page([])))
    server.on("POST", "/v1/audits", Answer(202, audit()))
    ask(lambda c: c.audits.create(base_model=MODEL, adapter=ADAPTER, dataset=DATASET))
    assert receiver.announced == []
    ask(lambda c: c.audits.create(base_model=MODEL, adapter=f"./{ADAPTER}", dataset=DATASET))
    assert len(receiver.announced) == 2


@pytest.mark.parametrize(
    "arguments", [{}, {"source": "x", "hub_id": "a/b"}, {"source": "x", "revision": "0" * 40}]
)
def test_a_model_comes_from_one_place(server: ScriptedServer, ask: Ask, arguments: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        ask(lambda c: c.models.create(**arguments))


def test_a_model_of_a_hub_is_only_named(server: ScriptedServer, ask: Ask) -> None:
    server.on("POST", "/v1/models", Answer(202, model(status="importing")))
    ask(lambda c: c.models.create(hub_id="org/model", revision="a" * 40))
    sent = json.loads(server.got[0].body)
    assert sent == {"name": "org/model", "upload_id": None, "hub_id": "org/model", "revision": "a" * 40}
