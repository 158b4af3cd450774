"""The text model within a multimodal one: which part of a folder is the base, and under what names.

Hubs give some models only whole, what sees beside what reads and writes. Texts never reach the former, so
that the text model by itself computes the same.
"""

from __future__ import annotations

from typing import Any

from atomscope_workers.models.folder import refuse

WHOLE = {"Gemma3ForConditionalGeneration": ("gemma3", "Gemma3ForCausalLM")}
"""Accepted multimodal architectures: the `model_type` of each, and the architecture of its text model."""

TEXT_KEYS = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Names of the text model's tensors, as newer and older files have them -> its own."""

_BESIDE = ("vision_tower.", "multi_modal_projector.")


def text_config(raw: dict[str, Any]) -> dict[str, Any] | None:
    """What a multimodal `config.json` says of its text model, its architecture named; None of any other.

    Raises `InvalidInput` (`invalid_config`) where it says nothing of it.
    """
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or name not in WHOLE or raw.get("model_type") != WHOLE[name][0]:
        return None
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        raise refuse(
            "invalid_config",
            "the configuration of the text model is expected, a JSON object",
            file="config.json",
            field="text_config",
        )
    return {**inner, "architectures": [WHOLE[name][1]]}


def is_beside(name: str) -> bool:
    """Whether a tensor of a multimodal model is none of its text model."""
    return name.removeprefix("model.").startswith(_BESIDE)
