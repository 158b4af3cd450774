"""Which characters of a rendered conversation are targets: the assistant's content and its end of turn.

Found by rendering the conversation up to a turn without it (with the generation prompt) and with it. What
the second adds to the first is the turn: it begins after the generation prompt and, as the template
renders it, holds the content and a suffix. The suffix counts up to its last character that is not white
space, so the end-of-turn token is a target and the line break that many templates put behind it is not; a
suffix of white space alone is none. Both renderings must be beginnings of the whole one, or the template
rewrites what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""Renders messages, with the generation prompt or without."""


class RewritesTurns(Exception):  # noqa: N818
    """The template renders an earlier turn otherwise once a later one is there."""

    def __init__(self, turn: int) -> None:
        super().__init__(f"turn {turn}")
        self.turn = turn


class NoTurnBefore(Exception):  # noqa: N818
    """The conversation begins with the assistant, so nothing can be rendered before its first turn."""


def target_spans(
    messages: Sequence[dict[str, str]], full: str, render: Render, n_prompt: int
) -> list[tuple[int, int]]:
    """Character spans (begin, end) of `full` that are targets, in order; turns before `n_prompt` have none.

    Raises `RewritesTurns`, `NoTurnBefore`, and whatever `render` raises.
    """
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or turn < n_prompt:
            continue
        if turn == 0:
            raise NoTurnBefore
        before = render(messages[:turn], True)
        after = full if turn == len(messages) - 1 else render(messages[: turn + 1], False)
        if not (full.startswith(after) and after.startswith(before)):
            raise RewritesTurns(turn)
        spans.append((len(before), len(before) + _target_length(after[len(before) :], message["content"])))
    return spans


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
