"""The endpoint is the operator's to name: what the environment may say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscope.errors import InvalidInput
from atomscope_workers.labels.settings import (
    DEFAULT_OPTIONS,
    LabelSettings,
    LabelSettingsError,
    label_settings,
    required_label_settings,
)
from atomscope_workers.worker import WorkerSettingsError, run

GIVEN = {"ATOMSCOPE_LABEL_URL": "https://models.example/v1/", "ATOMSCOPE_LABEL_MODEL": "small"}
SECRET = "sk-very-secret"


def test_address_and_model_are_enough() -> None:
    assert label_settings(GIVEN) == LabelSettings(url="https://models.example/v1", model="small")


def test_everything_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n", encoding="ascii")
    found = label_settings(
        GIVEN
        | {
            "ATOMSCOPE_LABEL_KEY_FILE": str(tmp_path / "key"),
            "ATOMSCOPE_LABEL_TIMEOUT": "2.5",
            "ATOMSCOPE_LABEL_DOCUMENTS": "3",
            "ATOMSCOPE_LABEL_CHARACTERS": "50",
            "ATOMSCOPE_LABEL_LIMIT": "7",
            "ATOMSCOPE_LABEL_OPTIONS": '{"max_tokens": null, "max_completion_tokens": 900}',
        }
    )
    assert found == LabelSettings(
        url="https://models.example/v1",
        model="small",
        key=SECRET,
        timeout=2.5,
        documents=3,
        characters=50,
        limit=7,
        options={"temperature": DEFAULT_OPTIONS["temperature"], "max_completion_tokens": 900},
    )
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("URL", "ftp://models.example/v1"),
        ("URL", "models.example/v1"),
        ("URL", "https:///v1"),
        ("URL", "https://models.example:port/v1"),
        ("URL", f"https://user:{SECRET}@models.example/v1"),
        ("URL", f"https://models.example/v1?key={SECRET}"),
        ("URL", "https://models.example/v1#x"),
        ("URL", "https://models.example/ v1"),
        ("KEY", f"{SECRET}\r\nHost: evil"),
        ("KEY", f"{SECRET}é"),
        ("KEY_FILE", "/nowhere/key"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "soon"),
        ("DOCUMENTS", "1.5"),
        ("DOCUMENTS", "101"),
        ("CHARACTERS", "-1"),
        ("LIMIT", "0"),
        ("OPTIONS", "[]"),
        ("OPTIONS", "{"),
        ("OPTIONS", '{"model": "other"}'),
        ("OPTIONS", '{"stream": true}'),
    ],
)
def test_a_wrong_setting_is_refused_by_name_without_its_value(name: str, value: str) -> None:
    with pytest.raises(LabelSettingsError, match=f"ATOMSCOPE_LABEL_{name}") as caught:
        label_settings(GIVEN | {f"ATOMSCOPE_LABEL_{name}": value})
    assert SECRET not in str(caught.value)


def test_a_key_is_given_once(tmp_path: Path) -> None:
    both = {"ATOMSCOPE_LABEL_KEY": SECRET, "ATOMSCOPE_LABEL_KEY_FILE": str(tmp_path)}
    with pytest.raises(LabelSettingsError, match="both"):
        label_settings(GIVEN | both)


def test_an_address_without_a_model_is_refused() -> None:
    with pytest.raises(LabelSettingsError, match="ATOMSCOPE_LABEL_MODEL"):
        label_settings({"ATOMSCOPE_LABEL_URL": GIVEN["ATOMSCOPE_LABEL_URL"]})


@pytest.mark.parametrize(
    ("environ", "named"),
    [({}, "ATOMSCOPE_LABEL_URL"), (GIVEN | {"ATOMSCOPE_LABEL_LIMIT": "no"}, "ATOMSCOPE_LABEL_LIMIT")],
)
def test_labels_that_nobody_can_give_are_refused_with_their_code(environ: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named) as caught:
        required_label_settings(environ)
    assert caught.value.code == "labels_unavailable"


def test_no_address_is_no_endpoint() -> None:
    assert label_settings({"ATOMSCOPE_LABEL_MODEL": "small"}) is None


def test_a_worker_with_a_wrong_setting_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCOPE_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("ATOMSCOPE_STORE", "file:///nowhere")
    monkeypatch.setenv("ATOMSCOPE_LABEL_URL", "not an address")
    monkeypatch.setenv("ATOMSCOPE_LABEL_MODEL", "small")
    with pytest.raises(WorkerSettingsError, match="ATOMSCOPE_LABEL_URL"):
        run({})
