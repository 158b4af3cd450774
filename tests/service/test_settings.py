"""Settings and the secret: read from the environment, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscope_service.auth.secret import Secret, ensure_secret, load_secret
from atomscope_service.settings import SettingsError, load_settings

NEEDED = {
    "ATOMSCOPE_DATABASE_URL": "postgresql+psycopg://user:hunter2@db/atomscope",
    "ATOMSCOPE_STORE": "s3://bucket/prefix",
    "ATOMSCOPE_BROKER_URL": "redis://:hunter2@broker/0",
    "ATOMSCOPE_SECRET_FILE": "/run/secret",
}


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load_settings(NEEDED)
    assert settings.base_url == "http://127.0.0.1:8321"
    assert (settings.max_dataset_bytes, settings.max_adapter_bytes) == (2 * 2**30, 8 * 2**30)
    assert (settings.max_model_bytes, settings.max_rows) == (200 * 2**30, 2_000_000)
    assert (settings.part_bytes, settings.hub_import) == (64 * 2**20, False)
    assert settings.secret_file == Path("/run/secret")


def test_every_setting_is_in_the_deployment_guide() -> None:
    import msgspec

    from atomscope_service.settings import Settings

    guide = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    for field in msgspec.structs.fields(Settings):
        assert f"`ATOMSCOPE_{field.name.upper()}`" in guide


def test_values_are_converted() -> None:
    settings = load_settings(
        NEEDED | {"ATOMSCOPE_PORT": "9000", "ATOMSCOPE_HUB_IMPORT": "true", "ATOMSCOPE_SWEEP_SECONDS": "0.5"}
    )
    assert (settings.port, settings.hub_import, settings.sweep_seconds) == (9000, True, 0.5)
    assert settings.base_url == "http://127.0.0.1:9000"


def test_an_empty_variable_means_the_default() -> None:
    assert load_settings(NEEDED | {"ATOMSCOPE_PORT": ""}).port == 8321


def test_a_base_url_has_no_slash_at_its_end() -> None:
    settings = load_settings(NEEDED | {"ATOMSCOPE_BASE_URL": "https://atoms.example/"})
    assert settings.base_url == "https://atoms.example"


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {
                "ATOMSCOPE_STORE": "ftp://x",
                "ATOMSCOPE_PORT": "70000",
                "ATOMSCOPE_HUB_IMPORT": "perhaps",
                "ATOMSCOPE_PART_BYTES": "1024",
                "ATOMSCOPE_LEASE_SECONDS": "5",
                "ATOMSCOPE_HEARTBEAT_SECONDS": "4",
            }
        )
    told = str(caught.value)
    for name in (
        "DATABASE_URL is not set",
        "BROKER_URL is not set",
        "SECRET_FILE is not set",
        "STORE must begin with",
        "PORT='70000'",
        "HUB_IMPORT='perhaps'",
        "PART_BYTES='1024'",
        "LEASE_SECONDS=5 must be at least twice",
    ):
        assert f"ATOMSCOPE_{name}" in told


@pytest.mark.parametrize("name", ["ATOMSCOPE_DATABASE_URL", "ATOMSCOPE_BROKER_URL"])
def test_passwords_are_not_shown(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(NEEDED | {name: "mysql://user:hunter2@host"})
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = ensure_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_secret(path).derive("links") == made.derive("links")
    assert "Secret(...)" in repr(made)


def test_every_purpose_has_its_own_key() -> None:
    secret = Secret(b"x" * 32)
    keys = {secret.derive("api-keys"), secret.derive("links"), secret.derive("cursors")}
    assert len(keys) == 3
    assert Secret(b"y" * 32).derive("links") not in keys


def test_a_secret_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_secret(tmp_path / "none")
    (tmp_path / "short").write_text("x" * 31 + "\n")
    with pytest.raises(SettingsError, match="holds 31 bytes"):
        load_secret(tmp_path / "short")
