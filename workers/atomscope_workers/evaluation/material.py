"""What a query's targets are asked, and the documents on which their cost is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from atomscope.bundle import layout, read_documents
from atomscope.errors import InputProblem, InvalidInput
from atomscope.steering import Target
from atomscope.types.evaluation import EvaluationQuery, EvaluationTarget, Prompt
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.evaluation.documents import audited_tokens, neutral_documents, own_documents
from atomscope_workers.evaluation.prompts import Asked, Kind, document_prompts, given_prompts
from atomscope_workers.models.base import CheckedBase, check_base, load_tokenizer
from atomscope_workers.query import AuditFiles, audited_form, audited_rows
from atomscope_workers.stages.limits import length_limit

FEWEST_PROMPTS = 4
"""Of each kind; from fewer nothing is told."""

_ANY_LENGTH = 1 << 30


class Material:
    """The prompts of all targets and the neutral documents, made before the model is loaded."""

    def __init__(self, files: AuditFiles, query: EvaluationQuery, targets: Sequence[Target]) -> None:
        """Raises `InvalidInput`: `old_bundle`, `bad_row`, `too_long`, and as checking the base does."""
        self._files, self._query = files, query
        self.warnings: list[str] = []
        base = check_base(files.base())
        limit = length_limit(base.config, files.spec.config.max_length)
        self.tokenizer = load_tokenizer(base.folder)
        self._rows = audited_rows(files, self.tokenizer, base.config)
        self._form: Literal["chat", "text"] = audited_form(files, files.bundle.plan)
        self._vocabulary = int(base.config.vocab_size)
        self._longest = _longest_prompt(base, query)
        self.tokens = {row: item for row, item in audited_tokens(files).items() if item.target_mask.any()}
        """Audited documents by physical row."""
        free, others = neutral_documents(files.bundle, targets, self.tokens, query.seed)
        self.cost_documents = self._cost_documents(free, others)
        self.neutral = self._neutral(free)
        """Neutral prompts, for all targets."""
        self.inviting = [
            self._inviting(place, item, target)
            for place, (item, target) in enumerate(zip(query.targets, targets, strict=True))
        ]
        """Inviting prompts by target; none of one without a detector."""
        if self._rows.truncated:
            self.warnings.append(f"{self._rows.truncated} completions were cut to {limit} tokens")

    def _cost_documents(self, free: Sequence[int], others: Sequence[int]) -> list[TokenizedDocument]:
        rows = [*free, *others][: self._query.neutral_documents]
        if len(free) < len(rows):
            self.warnings.append(
                f"cost is measured on {len(rows) - len(free)} documents on which a target has some strength: "
                f"only {len(free)} are free of every target"
            )
        return [self.tokens[row] for row in rows]

    def _neutral(self, free: Sequence[int]) -> list[Asked]:
        """Given, or of documents: first those on which cost is not measured."""
        query = self._query
        if all(item.detector is None for item in query.targets):
            return []
        if query.neutral is not None:
            found = self._given("neutral", "neutral", query.neutral, "neutral")
        else:
            rows = [*free[query.neutral_documents :], *free[: query.neutral_documents]]
            found = self._of_documents("neutral", "neutral", rows)
        self._warn_of_few(found, "neutral prompts")
        return found

    def _inviting(self, place: int, asked: EvaluationTarget, target: Target) -> list[Asked]:
        if asked.detector is None:
            return []
        if asked.inviting is not None:
            found = self._given("inviting", target.key, asked.inviting, f"targets[{place}].inviting")
        else:
            rows = own_documents(self._files.bundle, target)
            found = self._of_documents("inviting", target.key, rows)
        self._warn_of_few(found, f"inviting prompts of {target}")
        return found

    def _given(self, kind: Kind, name: str, prompts: Sequence[Prompt], field: str) -> list[Asked]:
        return given_prompts(
            kind,
            name,
            prompts,
            self._rows,
            self._form,
            field=field,
            longest=self._longest,
            vocabulary=self._vocabulary,
        )

    def _of_documents(self, kind: Kind, name: str, rows: Sequence[int]) -> list[Asked]:
        known = {item.document: item for item in read_documents(self._files.read(layout.DOCUMENTS), rows)}
        return document_prompts(
            kind, name, rows, self.tokens, known, count=self._query.prompts, longest=self._longest
        )

    def _warn_of_few(self, found: Sequence[Asked], what: str) -> None:
        if len(found) < FEWEST_PROMPTS:
            told = f"{len(found)} {what} are too few: at least {FEWEST_PROMPTS} different ones are needed"
            self.warnings.append(f"{told}; documents of plain text have none" if not found else told)


def _longest_prompt(base: CheckedBase, query: EvaluationQuery) -> int:
    """Tokens of a prompt that leave room for an answer. Raises `InvalidInput` (`too_long`) where none do."""
    positions, room = length_limit(base.config, _ANY_LENGTH), query.sampling.max_new_tokens
    if positions <= room:
        message = f"the model has {positions} positions, fewer than a prompt and {room} new tokens take"
        field = "sampling.max_new_tokens"
        raise InvalidInput("too_long", f"{field}: {message}", [InputProblem(message=message, field=field)])
    return positions - room
