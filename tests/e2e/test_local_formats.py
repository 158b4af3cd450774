"""The same documents in every format of data sets, audited by `audit run --local`: the same bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope.bundle import layout
from atomscope.cli import main
from tests.fixtures.corpus import rows as chats
from tests.workers.datasets.files import FORMATS, write
from tests.workers.local_runs import contents

DOCUMENTS = 12
CONFIG = {
    "dtype": "float32", "token_budget": 256, "n_atoms": 4, "alpha": 0.2,
    "min_active": 2, "top_documents": 4, "fits": 1, "surrogates": 0,
}  # fmt: skip
NAMED = {layout.MANIFEST, layout.SPEC, layout.REPORT, "gradients/0000.json"}
"""Files that hold the digest of the data set's file, or of what it went into."""

Audited = Callable[[Path], Path]


@pytest.fixture
def audited(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Audited:
    """The bundle of a data set, by the command."""
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # so that what the command sets is taken back
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))

    def audit(dataset: Path) -> Path:
        out = tmp_path / f"bundle of {dataset.name}"
        inputs = ["--base-model", str(tiny_llama), "--adapter", str(plain_adapter), "--dataset", str(dataset)]
        command = ["audit", "run", "--local", *inputs, "--config", str(config), "--out", str(out), "--json"]
        assert main(command) == 0
        atomscope.open(out).verify()
        return out

    return audit


def _texts() -> list[str]:
    """Two kinds of documents, with what delimiters and encodings stumble over."""
    kinds = ('The "quick" fox, {0} times; no\tmore.', "Grüße 你好 🙂 from number {0}, it's fine")
    return [kinds[item % 2].format(item) for item in range(DOCUMENTS)]


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One document a line."""
    path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    return path


def _same(bundles: Mapping[str, Path]) -> dict[str, set[str]]:
    """Paths by format that are not, to the byte, those of the first."""
    first, *others = bundles.items()
    expected = contents(first[1])
    found: dict[str, set[str]] = {}
    for name, bundle in others:
        held = contents(bundle)
        found[name] = {path for path in expected | held if held.get(path) != expected.get(path)}
    return found


def test_plain_text_gives_one_bundle_from_all_six_formats(audited: Audited, tmp_path: Path) -> None:
    rows = [{"text": text} for text in _texts()]
    bundles = {name: audited(write(tmp_path / f"train.{name}", rows)) for name in FORMATS}
    bundles["txt"] = audited(_lines(tmp_path / "train.txt", rows))
    assert _same(bundles) == dict.fromkeys(("json", "csv", "tsv", "parquet", "txt"), NAMED)
    bundle = atomscope.open(bundles["txt"])
    assert [item.messages[0]["content"] for item in bundle.documents.values()] == _texts()
    assert len(bundle.atoms) > 0, "without atoms nothing is compared"


def test_conversations_give_one_bundle_whether_turns_are_json_text_or_structs(
    audited: Audited, tmp_path: Path
) -> None:
    rows = chats(DOCUMENTS)
    bundles = {name: audited(write(tmp_path / f"train.{name}", rows)) for name in ("jsonl", "csv", "parquet")}
    assert _same(bundles) == dict.fromkeys(("csv", "parquet"), NAMED)
    bundle = atomscope.open(bundles["csv"])
    assert [item.messages for item in bundle.documents.values()] == [row["messages"] for row in rows]
    assert [item.id for item in bundle.documents.values()] == [row["id"] for row in rows]
    assert len(bundle.atoms) > 0, "without atoms nothing is compared"
