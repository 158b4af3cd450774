"""Which language model gives labels: the operator's settings, from environment variables.

An audit says only whether it wants labels. Where text is sent is never a client's to choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from atomscope.errors import AtomscopeError, InvalidInput

PREFIX = "ATOMSCOPE_LABEL_"

DEFAULT_OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 512}
"""Fields of every request beside model and messages."""

_OURS = ("model", "messages", "stream", "n")
"""Fields that `ATOMSCOPE_LABEL_OPTIONS` cannot set."""


class LabelSettingsError(AtomscopeError):
    """A setting of the endpoint for labels that cannot be used. Values are not told: one may be a key."""


@dataclass(frozen=True)
class LabelSettings:
    """An OpenAI-compatible endpoint and what may be sent to it."""

    url: str
    """Base address, such as `https://models.example/v1`, without credentials and without a final slash."""
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    """Seconds that one answer may take in all."""
    documents: int = 12
    """Most documents of which one request holds excerpts, those for contrast included."""
    characters: int = 600
    """Most characters of one document that are sent."""
    limit: int = 100
    """Most requests of one audit."""
    judgements: int = 5000
    """Most answers of one evaluation that are judged."""
    options: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIONS))


def label_settings(environ: Mapping[str, str]) -> LabelSettings | None:
    """The endpoint named in an environment; None where `ATOMSCOPE_LABEL_URL` is not set.

    Raises `LabelSettingsError` naming the variable and what it takes.
    """
    if not environ.get(f"{PREFIX}URL"):
        return None
    if not environ.get(f"{PREFIX}MODEL"):
        raise _wrong("MODEL", "is not set; it names the model that is asked")
    return LabelSettings(
        url=_url(environ[f"{PREFIX}URL"]),
        model=environ[f"{PREFIX}MODEL"],
        key=_key(environ),
        timeout=_number(environ, "TIMEOUT", LabelSettings.timeout, 3600.0),
        documents=int(_number(environ, "DOCUMENTS", LabelSettings.documents, 100, whole=True)),
        characters=int(_number(environ, "CHARACTERS", LabelSettings.characters, 20_000, whole=True)),
        limit=int(_number(environ, "LIMIT", LabelSettings.limit, 1000, whole=True)),
        judgements=int(_number(environ, "JUDGEMENTS", LabelSettings.judgements, 1_000_000, whole=True)),
        options=_options(environ.get(f"{PREFIX}OPTIONS", "")),
    )


def required_label_settings(environ: Mapping[str, str]) -> LabelSettings:
    """The same where labels were asked for; raises `InvalidInput` (`labels_unavailable`) without one."""
    return _required(environ, "labels_unavailable", "`labels` is true", "leave `labels` out")


def required_judge_settings(environ: Mapping[str, str]) -> LabelSettings:
    """The same where a judge was asked for; raises `InvalidInput` (`judge_unavailable`) without one."""
    return _required(environ, "judge_unavailable", "a detector is a judge", "take another detector")


def _required(environ: Mapping[str, str], code: str, asked: str, instead: str) -> LabelSettings:
    try:
        found = label_settings(environ)
    except LabelSettingsError as error:
        raise InvalidInput(code, f"the endpoint for labels cannot be asked: {error}") from error
    if found is None:
        raise InvalidInput(
            code,
            f"{asked}, and the operator named no endpoint for labels: set ATOMSCOPE_LABEL_URL and "
            f"ATOMSCOPE_LABEL_MODEL for the workers, or {instead}",
        )
    return found


def _wrong(name: str, what: str) -> LabelSettingsError:
    return LabelSettingsError(f"{PREFIX}{name} {what}")


def _url(text: str) -> str:
    accepted = "is not an http or https address of a host and a path, such as https://models.example/v1"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise _wrong("URL", accepted) from error
    if parts.username is not None or parts.password is not None:
        raise _wrong("URL", "holds credentials: give them as ATOMSCOPE_LABEL_KEY or ATOMSCOPE_LABEL_KEY_FILE")
    if parts.query or parts.fragment or parts.scheme not in ("http", "https") or not parts.hostname:
        raise _wrong("URL", accepted)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _wrong("URL", accepted)
    return text.rstrip("/")


def _key(environ: Mapping[str, str]) -> str | None:
    key, file = environ.get(f"{PREFIX}KEY"), environ.get(f"{PREFIX}KEY_FILE")
    if key and file:
        raise _wrong("KEY", f"and {PREFIX}KEY_FILE are both set: give one of them")
    name = "KEY_FILE" if file else "KEY"
    if file:
        try:
            key = Path(file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(name, f"cannot be read: {type(error).__name__}") from error
        if not key:
            raise _wrong(name, "names an empty file")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise _wrong(name, "holds something other than printable ASCII without spaces")
    return key or None


def _number(
    environ: Mapping[str, str], name: str, default: float, most: float, *, whole: bool = False
) -> float:
    text = environ.get(f"{PREFIX}{name}", "")
    if not text:
        return default
    try:
        value = float(int(text) if whole else float(text))
    except ValueError as error:
        raise _wrong(name, f"is not a {'whole ' if whole else ''}number up to {most:g}") from error
    if not 0 < value <= most:
        raise _wrong(name, f"is not above 0 and up to {most:g}")
    return value


def _options(text: str) -> dict[str, Any]:
    """The default fields of a request with those given put over them; null takes one away."""
    if not text:
        return dict(DEFAULT_OPTIONS)
    try:
        given = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise _wrong("OPTIONS", 'is not a JSON object, such as {"max_tokens": 200}') from error
    taken = [name for name in _OURS if name in given]
    if taken:
        raise _wrong("OPTIONS", f"cannot set {', '.join(taken)}")
    return {name: value for name, value in (DEFAULT_OPTIONS | given).items() if value is not None}
