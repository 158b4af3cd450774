"""The README's Python, run word for word against a running service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import atomscope
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory
from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[1]


def test_the_readme_links_lead_to_files() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_the_readme_snippet_runs(
    stack: Stack,
    tiny_llama: Path,
    tiny_adapter: TinyAdapterFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATOMSCOPE_BASE_URL", stack.url)
    monkeypatch.setenv("ATOMSCOPE_API_KEY_FILE", str(stack.key_file))
    (tmp_path / "base").symlink_to(tiny_llama)
    (tmp_path / "adapter").symlink_to(tiny_adapter())
    write_corpus(tmp_path / "train.jsonl", documents=48)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102  (our own page)
    audit, client = names["audit"], names["client"]
    assert isinstance(audit, atomscope.Audit)
    assert isinstance(client, atomscope.Client)
    client.close()
    assert audit.status == "succeeded"
    assert (tmp_path / "steered" / "adapter_model.safetensors").is_file()
    assert atomscope.open(tmp_path / "bundle").report.n_atoms == len(audit.atoms) > 0
    assert str(audit.atoms) in capsys.readouterr().out
