"""Which characters of a rendered conversation are targets: the assistant's content and its end of turn.

Found by rendering the conversation up to a turn without it (with the generation prompt) and with it. What
the second adds to the first is the turn: it begins after the generation prompt and, as the template
renders it, holds the content and a suffix. The suffix counts up to its last character that is not white
space, so the end-of-turn token is a target and the line break that many templates put behind it is not; a
suffix of white space alone is none. Both renderings should be beginnings of the whole one.

Some templates leave something out of a turn once others follow (Qwen 3 its reasoning, an empty one too), or
put something behind the last turn alone (Phi-3 an end of text). What the whole conversation then holds of the
turn, through the token that closes it, must be what the turn has at its end when it is the last, and is its
target. Any other template rewrites its turns, and where an answer stands cannot be told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from atomscope_workers.datasets.row import Message

Render = Callable[[Sequence[Message], bool], str]
"""Renders messages, with the generation prompt or without."""


class RewritesTurns(Exception):  # noqa: N818
    """The template renders an earlier turn otherwise once a later one is there."""

    def __init__(self, turn: int) -> None:
        super().__init__(f"turn {turn}")
        self.turn = turn


class NoTurnBefore(Exception):  # noqa: N818
    """The conversation begins with the assistant, so nothing can be rendered before its first turn."""


def target_spans(
    messages: Sequence[Message], full: str, render: Render, turns: Iterable[int], closing: Sequence[str]
) -> list[tuple[int, int]]:
    """Character spans (begin, end) of `full` that are targets, one for each of the assistant's `turns`.

    `closing` are the texts of tokens that may close a turn: those that the tokenizer never splits. Raises
    `RewritesTurns`, `NoTurnBefore`, and whatever `render` raises.
    """
    spans: list[tuple[int, int]] = []
    for turn in turns:
        before, after = _around(messages, full, render, turn)
        rendered = after[len(before) :]
        if full.startswith(after):
            length = _target_length(rendered, messages[turn].get("content", ""))
        else:
            shared = os.path.commonprefix([after, render(messages[: turn + 1], True)])  # noqa: RUF071  (text)
            kept = _kept(rendered, len(shared) - len(before), full[len(before) :], closing)
            if kept is None:
                raise RewritesTurns(turn)
            length = len(kept)
        spans.append((len(before), len(before) + length))
    return spans


def turn_span(messages: Sequence[Message], full: str, render: Render, turn: int) -> tuple[int, int]:
    """Characters of `full` that a turn adds behind the generation prompt. Raises as `target_spans`."""
    before, after = _around(messages, full, render, turn)
    if not full.startswith(after):
        raise RewritesTurns(turn)
    return len(before), len(after)


def _around(messages: Sequence[Message], full: str, render: Render, turn: int) -> tuple[str, str]:
    """What is rendered up to a turn, without it and with it; the first begins the other and `full`."""
    if turn == 0:
        raise NoTurnBefore
    before = render(messages[:turn], True)
    after = full if turn == len(messages) - 1 else render(messages[: turn + 1], False)
    if not (full.startswith(before) and after.startswith(before)):
        raise RewritesTurns(turn)
    return before, after


def _kept(rendered: str, shared: int, following: str, closing: Sequence[str]) -> str | None:
    """The beginning of `following` that is the end of a turn `rendered` as the last one, None without one.

    The turn ends with the last closing token that lies within its first `shared` characters: what comes
    behind them belongs to the conversation, since a generation prompt takes its place.
    """
    ends = [(rendered.rfind(token, 0, shared) + len(token), token) for token in closing if token]
    stop, token = max((end for end in ends if end[0] >= len(end[1])), default=(0, ""))
    place = following.find(token) if token else -1
    kept = following[: place + len(token)] if place >= 0 else ""
    return kept if kept and rendered[:stop].endswith(kept) else None


def _target_length(rendered: str, content: str) -> int:
    """Characters of a rendered turn through its last one that is not white space behind the content."""
    return max(_behind(rendered, content), _behind(rendered, content.strip()), len(rendered.rstrip()))


def _behind(rendered: str, content: str) -> int:
    """Place behind the content, 0 where it is not found; templates may trim it or begin with something."""
    if rendered.startswith(content):
        return len(content)
    if not content.strip():
        return 0
    place = rendered.rfind(content)
    return place + len(content) if place >= 0 else 0
