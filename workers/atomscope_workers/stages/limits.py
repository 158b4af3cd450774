"""What the base model can take of a document: how many tokens, and which."""

from __future__ import annotations

from transformers import PretrainedConfig

from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.models.folder import refuse


def length_limit(config: PretrainedConfig, max_length: int) -> int:
    """Tokens kept of a document: as the audit asks, but never more than the model has positions for."""
    positions = getattr(config, "max_position_embeddings", None)
    return min(max_length, positions) if isinstance(positions, int) else max_length


def check_vocabulary(document: TokenizedDocument, config: PretrainedConfig, shown: str) -> None:
    """Raise `InvalidInput` (`tokenizer_mismatch`) where a token has no embedding; `shown` names it."""
    size = int(config.vocab_size)
    highest = int(document.input_ids.max())
    if highest >= size:
        raise refuse(
            "tokenizer_mismatch",
            f"the tokenizer gives token {highest} ({shown}); the model has {size} of them",
            file="config.json",
            field="vocab_size",
        )
