"""Turns of a conversation, each `role` and `content` (OpenAI) or `from` and `value` (ShareGPT).

Both forms are read alike wherever turns stand. What a chat template may use of a turn is kept; what would
change a rendering or the training and cannot be kept is refused by name; other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atomscope_workers.datasets.json_text import decode_json
from atomscope_workers.datasets.row import REASONING, Message, RowFault, Turn
from atomscope_workers.datasets.tools import calls_of_text, read_calls

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""`from` of a turn -> its role; the text of `function_call` is JSON of the calls."""
MAX_MESSAGES = 1024

_REFUSED = {
    "function_call": "give calls as `tool_calls`",
    "train_detail": "give `train` or `weight` of the whole turn",
    "loss": "give `train` or `weight`",
    "loss_mask": "give `train` or `weight`",
    "mask": "give `train` or `weight`",
    "refusal": "give it as `content`",
    "images": "only text is audited",
    "image": "only text is audited",
    "audio": "only text is audited",
    "audios": "only text is audited",
    "videos": "only text is audited",
    "video": "only text is audited",
}


def read_turns(value: object, field: str) -> tuple[Turn, ...]:
    """The turns of a list, or of JSON text of one. Raises `RowFault`."""
    if isinstance(value, str):
        value = decode_json(value, field)
    if not isinstance(value, list) or not value:
        raise RowFault(field, "a list of at least one message is expected")
    if len(value) > MAX_MESSAGES:
        raise RowFault(field, f"at most {MAX_MESSAGES} messages are accepted")
    return tuple(_turn(item, f"{field}[{place}]") for place, item in enumerate(value))


def plain_turn(role: str, content: str, field: str) -> Turn:
    """A turn whose text is the whole of `field`."""
    return Turn({"role": role, "content": content}, field, content_field=field)


def _turn(value: object, field: str) -> Turn:
    if not isinstance(value, Mapping):
        raise RowFault(field, "an object with `role` and `content`, or `from` and `value`, is expected")
    given = {name: item for name, item in value.items() if item is not None}
    for name, instead in _REFUSED.items():
        if given.get(name) not in (None, []):
            raise RowFault(f"{field}.{name}", f"`{name}` of a message is not supported: {instead}")
    if "from" in given or "value" in given:
        if "role" in given or "content" in given:
            raise RowFault(field, "`role` and `content`, or `from` and `value`, is expected, not both")
        message = _sharegpt(given, field)
    else:
        message = {"role": _one_of(given.get("role"), ROLES, f"{field}.role")}
        if "content" in given:
            message["content"] = _text(given["content"], f"{field}.content")
    _add_extras(message, given, field)
    calls_alone = "tool_calls" in message or (message["role"] == "assistant" and _reasons(message))
    if "content" not in message and not calls_alone:
        raise RowFault(f"{field}.{'value' if 'from' in given else 'content'}", "a string is expected")
    content_field = f"{field}.value" if "from" in given else ""
    return Turn(message, field, _is_trained(given, message["role"], field), content_field)


def _sharegpt(given: Mapping[str, Any], field: str) -> Message:
    speaker = _one_of(given.get("from"), tuple(SPEAKERS), f"{field}.from")
    if "value" not in given:
        return {"role": SPEAKERS[speaker]}
    text = _text(given["value"], f"{field}.value")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": calls_of_text(text, f"{field}.value")}
    return {"role": SPEAKERS[speaker], "content": text}


def _one_of(value: object, accepted: tuple[str, ...], field: str) -> str:
    if not isinstance(value, str) or value not in accepted:
        raise RowFault(field, f"one of {', '.join(accepted)} is expected")
    return value


def _text(value: object, field: str) -> str:
    """A string, or the text parts of a list joined without anything between them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowFault(field, "a string, or a list of parts of text, is expected")
    texts: list[str] = []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            named = f", not {kind!r:.80}" if kind is not None else ""
            raise RowFault(f"{field}[{place}]", f"a part of the type `text` is expected{named}")
        text = part.get("text")
        if not isinstance(text, str):
            raise RowFault(f"{field}[{place}].text", "a string is expected")
        texts.append(text)
    return "".join(texts)


def _add_extras(message: Message, given: Mapping[str, Any], field: str) -> None:
    """Add what a template may use of the turn beside role and content."""
    if given.get("tool_calls"):
        if message["role"] != "assistant" or "tool_calls" in message:
            raise RowFault(f"{field}.tool_calls", "calls are expected of an assistant's turn, once")
        message["tool_calls"] = read_calls(given["tool_calls"], f"{field}.tool_calls")
    for name in (*REASONING, "name", "tool_call_id"):
        if name not in given:
            continue
        if not isinstance(given[name], str):
            raise RowFault(f"{field}.{name}", "a string is expected")
        if name in REASONING and given[name] and message["role"] != "assistant":
            raise RowFault(f"{field}.{name}", "reasoning is expected of an assistant's turn alone")
        if given[name]:
            message[name] = given[name]
    if len(_reasons(message)) > 1:
        raise RowFault(f"{field}.{_reasons(message)[1]}", f"one of {', '.join(REASONING)} is expected")


def _reasons(message: Message) -> list[str]:
    return [name for name in REASONING if name in message]


def _is_trained(given: Mapping[str, Any], role: str, field: str) -> bool:
    """Whether the turn is a target by its `weight` (0 or 1) or `train` (true or false)."""
    flags = [name for name in ("weight", "train") if name in given]
    if not flags:
        return True
    if len(flags) == 2:
        raise RowFault(f"{field}.train", "`weight` or `train` is expected, not both")
    name = flags[0]
    value = given[name]
    if not isinstance(value, bool if name == "train" else int | float) or value not in (0, 1):
        accepted = "true or false" if name == "train" else "0 or 1"
        raise RowFault(f"{field}.{name}", f"{accepted} is expected")
    if value and role != "assistant":
        raise RowFault(f"{field}.{name}", "only an assistant's turn can be trained on")
    return bool(value)
