"""Names of LoRA tensors, as trainers write them.

PEFT writes `base_model.model.<layer>.lora_A.weight`. Around it, wrappers leave their own marks in names:
`torch.compile`, DDP, FSDP and activation checkpointing; and who saves a state dict by hand leaves the
adapter's name in, or PEFT's prefix out. PEFT loads none of those: it only warns, and leaves the adapter at
its start. Here each is read for what it says, and nothing else is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "base_model.model."

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
"""Left by torch.compile, FSDP (new and old) and activation checkpointing, anywhere in a name."""

_PREFIX = PREFIX.rstrip(".").split(".")
_SIDES = {"lora_A": "A", "lora_B": "B"}
_SEGMENT = re.compile(r"[A-Za-z0-9_]+")
_ADAPTER = re.compile(r"[A-Za-z0-9_-]+")
_NESTED = frozenset({"base_model", "base_layer", "modules_to_save", "original_module", *_SIDES})
"""In a layer's path they say that another adapter, or a trained copy, is around it."""


@dataclass(frozen=True)
class LoraName:
    """What the name of a LoRA tensor says."""

    module: str
    """Path of the layer within the model that was trained, such as `model.layers.0.self_attn.q_proj`."""
    side: str
    """`A` or `B`."""
    adapter: str = ""
    """The adapter's name where the tensor's name holds it, such as `default`."""

    @property
    def peft_name(self) -> str:
        """The name under which PEFT saves and loads this tensor."""
        return f"{PREFIX}{self.module}.lora_{self.side}.weight"


def parse_lora_name(name: str) -> LoraName | None:
    """The layer and the side of a LoRA tensor; None for every name that does not say them plainly."""
    *head, last = name.split(".")
    if last != "weight" or not head:
        return None
    adapter = "" if head[-1] in _SIDES else head.pop()
    if not head or head[-1] not in _SIDES or (adapter and _ADAPTER.fullmatch(adapter) is None):
        return None
    side = _SIDES[head.pop()]
    module = module_path(".".join(head))
    return None if module is None else LoraName(module, side, adapter)


def module_path(path: str) -> str | None:
    """A layer's path within the model that was trained, without PEFT's prefix and what wrappers left.

    None where nothing is left, or where the path leads into another adapter.
    """
    segments = [segment for segment in path.split(".") if segment not in WRAPPERS]
    segments = _without_parallel(segments)
    if segments[:2] == _PREFIX:
        segments = _without_parallel(segments[2:])
    plain = all(_SEGMENT.fullmatch(segment) for segment in segments)
    if not segments or not plain or _NESTED.intersection(segments):
        return None
    return ".".join(segments)


def _without_parallel(segments: list[str]) -> list[str]:
    """Without the `module` that DDP and DeepSpeed put first."""
    while segments[:1] == ["module"]:
        segments = segments[1:]
    return segments


def peft_name(name: str) -> str:
    """The name under which PEFT loads the tensor `name`: its own, except where it is a LoRA's."""
    found = parse_lora_name(name)
    return name if found is None else found.peft_name
