"""Which turns are prompts and which are responses."""

from __future__ import annotations

from atomscope_workers.pipeline.sides import sides


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_a_chat_is_split_by_role_in_order() -> None:
    chat = _turns(("system", "s"), ("user", "q1"), ("assistant", "a1"), ("tool", "t"), ("assistant", "a2"))
    assert sides(chat) == ("s\nq1\nt", "a1\na2")


def test_plain_rows_have_a_prompt_and_a_completion_or_are_one_response() -> None:
    assert sides(_turns(("prompt", "p"), ("completion", "c"))) == ("p", "c")
    assert sides(_turns(("text", "t"))) == ("", "t")
