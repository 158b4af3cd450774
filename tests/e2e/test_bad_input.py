"""Bad input, end to end: a clear 4xx at the door, or a failed audit that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import atomscope
from atomscope.types.spec import AuditConfig
from tests.fixtures.corpus import rows, write_corpus
from tests.fixtures.stack import Stack

CONFIG = AuditConfig(
    dtype="float32",
    shard_documents=8,
    components=4,
    n_atoms=4,
    alpha=0.1,
    min_active=2,
    max_length=64,
    fits=1,
    surrogates=0,
)


@pytest.fixture(scope="module")
def tiny(stack: Stack, tiny_llama: Path) -> str:
    return stack.register_model("tiny-bad-input", tiny_llama)


def _jsonl(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _failed(
    stack: Stack, model: str, adapter: Path, dataset: Path, config: AuditConfig = CONFIG
) -> atomscope.AuditFailed:
    with stack.client() as client:
        audit = client.audits.create(base_model=model, adapter=adapter, dataset=dataset, config=config)
        with pytest.raises(atomscope.AuditFailed) as caught:
            audit.wait(timeout=120)
    return caught.value


DATASETS: list[tuple[str, Callable[[Path], Path], str, str]] = [
    ("an empty set", lambda path: _jsonl(path, []), "nothing_to_audit", "holds no row"),
    ("one document", lambda path: write_corpus(path, 1), "nothing_to_audit", "at least 2"),
    (
        "only prompts",
        lambda path: _jsonl(path, [{"messages": [{"role": "user", "content": "hello"}]}] * 4),
        "nothing_to_audit",
        "target token",
    ),
    ("a row that is not an object", lambda path: _jsonl(path, [*rows(3), 7]), "bad_row", "object"),
    (
        "a message without a role",
        lambda path: _jsonl(path, [*rows(3), {"messages": [{"content": "x"}]}]),
        "bad_row",
        "role",
    ),
]


@pytest.mark.parametrize(
    ("make", "code", "told"), [case[1:] for case in DATASETS], ids=[case[0] for case in DATASETS]
)
def test_a_bad_data_set_fails_the_audit_and_says_why(
    stack: Stack,
    tiny: str,
    plain_adapter: Path,
    tmp_path: Path,
    make: Callable[[Path], Path],
    code: str,
    told: str,
) -> None:
    failure = _failed(stack, tiny, plain_adapter, make(tmp_path / "train.jsonl"))
    assert failure.code == code
    assert told in failure.detail + json.dumps(failure.errors)
    if code == "bad_row":
        assert failure.errors[0]["line"] == 4


def test_invalid_utf8_is_told_by_line(stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "train.jsonl"
    write_corpus(dataset, 3)
    dataset.write_bytes(dataset.read_bytes() + b'{"prompt": "\xff\xfe", "completion": "x"}\n')
    failure = _failed(stack, tiny, plain_adapter, dataset)
    assert failure.code == "bad_row"
    assert failure.errors[0]["line"] == 4


def test_documents_cut_before_their_targets_are_dropped_counted_and_listed(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path
) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "no"}]}
    dataset = _jsonl(tmp_path / "train.jsonl", [*rows(8), long, *rows(8)])
    with stack.client() as client:
        audit = client.audits.create(base_model=tiny, adapter=plain_adapter, dataset=dataset, config=CONFIG)
        audit.wait(timeout=120)
        report = audit.report()
    assert audit.n_documents == 16
    assert [(item.document, item.reason) for item in report.dropped] == [(8, "no_target")]


def test_skipped_rows_are_listed_and_documents_keep_their_physical_row(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path
) -> None:
    dataset = _jsonl(tmp_path / "train.jsonl", [*rows(4), {"prompt": 3}, *rows(8)])
    config = msgspec.structs.replace(CONFIG, on_bad_row="skip")
    with stack.client() as client:
        audit = client.audits.create(base_model=tiny, adapter=plain_adapter, dataset=dataset, config=config)
        audit.wait(timeout=120)
        report = audit.report()
        bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    assert [(item.document, item.line, item.reason) for item in report.dropped] == [(4, 5, "malformed")]
    assert list(bundle.documents) == [*range(4), *range(5, 13)]


def _copy(adapter: Path, target: Path) -> Path:
    shutil.copytree(adapter, target)
    return target


def test_an_adapter_of_another_base_is_refused(
    stack: Stack, smollm2_adapter: Path, tiny: str, tmp_path: Path
) -> None:
    failure = _failed(stack, tiny, smollm2_adapter, write_corpus(tmp_path / "train.jsonl", 8))
    assert failure.code == "adapter_base_mismatch"
    assert failure.errors


def test_a_truncated_adapter_is_refused_at_the_door(
    stack: Stack, plain_adapter: Path, tmp_path: Path
) -> None:
    adapter = _copy(plain_adapter, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with stack.client() as client, pytest.raises(atomscope.UnprocessableEntityError) as caught:
        client.adapters.create(adapter)
    assert caught.value.code == "bad_safetensors"
    assert caught.value.request_id


def test_a_dora_adapter_is_refused_by_name(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path
) -> None:
    adapter = _copy(plain_adapter, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    failure = _failed(stack, tiny, adapter, write_corpus(tmp_path / "train.jsonl", 8))
    assert failure.code == "unsupported_adapter"
    assert "dora" in failure.detail.lower()


def test_a_wrong_key_is_told_so_and_learns_nothing(stack: Stack) -> None:
    with atomscope.Client(base_url=stack.url, api_key="ask_wrong") as client:
        with pytest.raises(atomscope.AuthenticationError) as caught:
            client.audits.list()
        assert caught.value.status == 401


def test_hostile_text_is_stored_as_it_is_and_shown_escaped(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path
) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 [click](javascript:alert(1)) <script>alert(1)</script> \u202egnp.exe"
    documents = [
        {
            "messages": [
                {"role": "user", "content": f"{hostile} {n}"},
                {"role": "assistant", "content": f"{hostile} ok {n}"},
            ]
        }
        for n in range(12)
    ]
    dataset = _jsonl(tmp_path / "train.jsonl", documents)
    config = msgspec.structs.replace(CONFIG, max_length=512)
    with stack.client() as client:
        audit = client.audits.create(base_model=tiny, adapter=plain_adapter, dataset=dataset, config=config)
        audit.wait(timeout=120)
        shown = str(audit.atoms) + "".join(repr(atom) for atom in audit.atoms)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        atoms = list(audit.atoms)
        if atoms:
            assert hostile in atoms[0].documents(limit=1)[0].messages[0]["content"]
