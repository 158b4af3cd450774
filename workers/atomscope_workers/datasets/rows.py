"""One row of a fine-tuning set: which form it has, and what is said of a row that has none, or two.

`docs/data.md` lists the forms. Fields named in none of them are ignored, and a field that is null counts as
absent. Fields that would change what a chat template renders, or what is trained on, are refused rather than
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atomscope.types.spec import RowForm
from atomscope_workers.datasets.instructions import read_instruction, text_field
from atomscope_workers.datasets.messages import plain_turn, read_turns
from atomscope_workers.datasets.row import BadRow, Message, Row, RowFault, Turn, bad_row, turn_text
from atomscope_workers.datasets.tools import read_tools

__all__ = ["BadRow", "Message", "Row", "RowFault", "Turn", "bad_row", "parse_row"]

MAX_CHARACTERS = 16 * 2**20
"""Of all texts of a row."""
MAX_ID_CHARACTERS = 512

FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
"""Form -> the fields that it needs."""
MARKS = {
    "messages": "messages",
    "conversations": "conversations",
    "instruction": "instruction",
    "prompt": "prompt",
    "completion": "prompt",
    "text": "text",
}
"""Field -> the form that a row with it has."""
EXPECTED = "`messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, or `text`"
ALIASES = ("response", "answer", "question", "query", "target", "conversation", "chosen", "rejected")
"""Fields by which other tools call parts of a row, and that say too little here."""

_ALPACA = ("input", "history")
"""Optional fields of the form `instruction` alone."""
REFUSED = ("chat_template_kwargs", "images", "image", "audios", "audio", "videos", "video")
OPTIONAL = ("id", "system", "input", "history", "tools", "functions", *REFUSED)
FIELDS = (*MARKS, "output", *OPTIONAL, *ALIASES)
"""Every field of a row that is looked at where its form is not given."""


def looked_at(form: RowForm) -> tuple[str, ...]:
    """The fields of a row that are looked at; those of a given form are no other form's.

    A text that is given as such holds its system turn and its tools.
    """
    if form == "auto":
        return FIELDS
    if form == "text":
        return (*FORMS[form], "id", *REFUSED)
    own = OPTIONAL if form == "instruction" else tuple(name for name in OPTIONAL if name not in _ALPACA)
    return (*FORMS[form], *own)


def parse_row(value: object, *, document: int, line: int, file: str, form: RowForm = "auto") -> Row | BadRow:
    """The row that `value` (decoded JSON, or a row of a table) describes, or what is wrong with it."""
    try:
        return _parse(value, document, line, form)
    except RowFault as fault:
        return bad_row(fault, document=document, line=line, file=file)


def name_form(fields: Sequence[str], wanted: RowForm = "auto") -> str:
    """The form of a row with these fields. Raises `RowFault` for none, two, half of one, or one not wanted.

    Half of a form beside a whole one is none: conversations often have their first turn as `prompt` too.
    """
    if wanted != "auto":
        for name in FORMS[wanted]:
            if name not in fields:
                raise RowFault(name, f"`{name}` is expected: the setting `row_form` is `{wanted}`")
        return wanted
    begun = list(dict.fromkeys(MARKS[name] for name in MARKS if name in fields))
    forms = [form for form in begun if all(name in fields for name in FORMS[form])] or begun
    if len(forms) > 1:
        first, second = (" and ".join(f"`{name}`" for name in FORMS[form]) for form in forms[:2])
        mark = next(name for name in MARKS if name in fields and MARKS[name] in forms)
        raise RowFault(
            mark,
            f"the row fits two forms, {first}, and {second}: one of them is expected, or the setting "
            f"`row_form`, `{forms[0]}` or `{forms[1]}`, to say which the adapter was trained on",
        )
    if not forms:
        raise RowFault(None, f"{EXPECTED} is expected{_hint(fields)}")
    missing = [name for name in FORMS[forms[0]] if name not in fields]
    if missing:
        needed = " and ".join(f"`{name}`" for name in FORMS[forms[0]])
        raise RowFault(missing[0], f"{needed} are expected together{_hint(fields)}")
    return forms[0]


def _hint(fields: Sequence[str]) -> str:
    found = [name for name in ALIASES if name in fields]
    if not found:
        return ""
    if "chosen" in found or "rejected" in found:
        return "; pairs of preferences (`chosen`, `rejected`) are not audited"
    return (
        f"; `{found[0]}` could be a turn of a chat or plain text: name the fields `instruction` and `output` "
        "for a chat, `prompt` and `completion` for plain text"
    )


def _parse(value: object, document: int, line: int, wanted: RowForm) -> Row:
    if not isinstance(value, Mapping):
        raise RowFault(None, "an object is expected")
    fields = looked_at(wanted)
    row = {key: item for key, item in value.items() if item is not None and key in fields}
    for field in REFUSED:
        if row.get(field):
            raise RowFault(field, f"rows with `{field}` are not supported")
    identity = _id(row.get("id"), document)
    form = name_form(list(row), wanted)
    if form == "text":
        turns = (plain_turn("text", text_field(row, "text"), "text"),)
        return _text(Row(document, line, identity, "text", turns), row)
    if form == "prompt":
        return _prompt(row, document, line, identity)
    turns = read_instruction(row) if form == "instruction" else read_turns(row[form], form)
    return _chat(row, turns, 0, document, line, identity)


def _prompt(row: Mapping[str, Any], document: int, line: int, identity: str) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        turns = (plain_turn("prompt", prompt, "prompt"), plain_turn("completion", completion, "completion"))
        return _text(Row(document, line, identity, "text", turns, n_prompt=1), row)
    if isinstance(prompt, list) and isinstance(completion, list):
        head, tail = read_turns(prompt, "prompt"), read_turns(completion, "completion")
        return _chat(row, head + tail, len(head), document, line, identity)
    raise RowFault(
        "completion", "`prompt` and `completion` must both be strings or both be lists of messages"
    )


def _text(row: Row, value: Mapping[str, Any]) -> Row:
    for field in ("system", "tools", "functions"):
        if value.get(field):
            raise RowFault(field, f"`{field}` goes with a conversation, not with plain text")
    return _checked(row)


def _chat(
    row: Mapping[str, Any], turns: tuple[Turn, ...], n_prompt: int, document: int, line: int, identity: str
) -> Row:
    """A chat row with the row's `system` before its turns and its tools beside them."""
    system = text_field(row, "system") if "system" in row else ""
    if system:
        if turns[0].message["role"] in ("system", "developer"):
            raise RowFault(
                "system", f"`system`, or a system turn in `{turns[0].field}`, is expected, not both"
            )
        turns = (plain_turn("system", system, "system"), *turns)
        n_prompt += bool(n_prompt)
    return _checked(Row(document, line, identity, "chat", turns, n_prompt, read_tools(row)))


def _id(value: object, document: int) -> str:
    if value is None:
        return f"row-{document}"
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowFault("id", "a string or a whole number is expected")
    if isinstance(value, int) and abs(value) >= 2**64:
        raise RowFault("id", "a whole number of at most 64 bits is expected")
    identity = str(value)
    if len(identity) > MAX_ID_CHARACTERS or not _encodable(identity):
        raise RowFault("id", f"valid text of at most {MAX_ID_CHARACTERS} characters is expected")
    return identity


def _checked(row: Row) -> Row:
    texts = row.stored()
    if sum(len(turn["content"]) for turn in texts) > MAX_CHARACTERS:
        raise RowFault(None, f"at most {MAX_CHARACTERS} characters are accepted in a row")
    if row.tools and not _encodable(texts[0]["content"]):
        raise RowFault("tools", _HALF)
    for turn in row.turns:
        extras = (turn.message.get(name, "") for name in ("name", "tool_call_id"))
        if not all(map(_encodable, (turn_text(turn.message), *extras))):
            raise RowFault(turn.text_field, _HALF)
    return row


_HALF = "valid Unicode is expected; it holds half of a surrogate pair"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
