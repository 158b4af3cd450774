"""Bounded checks of what arrived: headers and small JSON files, never the content of weights or data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, cast

import msgspec

from atomscope_service.api.problems import ProblemError

MAX_HEADER = 16 * 1024 * 1024
"""Bytes of a safetensors header that are read at most; the largest models have about 1 MiB a file."""
MAX_JSON = 8 * 1024 * 1024
"""Bytes of a configuration file that are read at most."""
MAX_TARGETS = 10_000

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16,
    "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

Open = Callable[[str], BinaryIO]
"""Opens a file of the folder under inspection by name; the caller of it closes the stream."""


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class AdapterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter's record says."""

    rank: int
    target_modules: list[str]
    base_model_name: str | None


def check_safetensors(stream: BinaryIO, size: int, name: str) -> dict[str, TensorEntry]:
    """Check a safetensors header against the file's size; its tensors by name.

    Raises 422 `bad_safetensors` for a file that is truncated, has gaps, overlaps, or offsets that do not
    fit shapes.
    """

    def bad(reason: str) -> ProblemError:
        return ProblemError(422, "bad_safetensors", f"{name}: {reason}.", param="upload_id")

    prefix = _read(stream, 8)
    if len(prefix) < 8:
        raise bad(f"{size} bytes cannot hold a header")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise bad(f"its header claims {length} bytes; {MAX_HEADER} are accepted")
    if length + 8 > size:
        raise bad(f"its header claims {length} bytes of a file of {size}: it is truncated")
    try:
        header = msgspec.json.decode(_read(stream, length), type=dict[str, Any])
        header.pop("__metadata__", None)
        tensors = msgspec.convert(header, dict[str, TensorEntry])
    except msgspec.DecodeError as error:
        raise bad(f"its header is not valid: {error}") from error
    end = 0
    for tensor_name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, stop = tensor.data_offsets
        bits = _DTYPE_BITS.get(tensor.dtype)
        if bits is None:
            raise bad(f"tensor {tensor_name!r} has the unknown dtype {tensor.dtype!r}")
        if start != end or stop < start or (stop - start) * 8 != _count(tensor.shape) * bits:
            raise bad(f"the offsets of tensor {tensor_name!r} do not fit its shape or its neighbours")
        end = stop
    if not tensors:
        raise bad("it holds no tensor")
    if 8 + length + end != size:
        raise bad(
            f"its header describes {8 + length + end} bytes, the file has {size}: it is truncated or padded"
        )
    return tensors


def _count(shape: list[int]) -> int:
    count = 1
    for dimension in shape:
        count *= dimension if dimension >= 0 else -1
    return count


def read_config(open_file: Open, name: str) -> dict[str, Any]:
    """A configuration file as an object; 422 when it is not one, is too long, or asks for remote code."""
    with open_file(name) as stream:
        content = _read(stream, MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ProblemError(422, "bad_config", f"{name} is longer than {MAX_JSON} bytes.", param="upload_id")
    try:
        config = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProblemError(
            422, "bad_config", f"{name} is not a JSON object: {error}.", param="upload_id"
        ) from error
    except RecursionError as error:
        raise ProblemError(422, "bad_config", f"{name} is nested too deeply.", param="upload_id") from error
    if "auto_map" in config:
        raise ProblemError(
            422,
            "remote_code",
            f"{name} has `auto_map`, which asks for code from outside to be run: it is never accepted.",
            param="upload_id",
        )
    return config


def inspect_adapter(open_file: Open, sizes: dict[str, int]) -> AdapterFacts:
    """Check an adapter's config and weights; what its record says.

    Raises 422 `unsupported_adapter` for anything but LoRA; whether the modules and options are supported
    is decided by the audit, which has the base model at hand.
    """
    config = read_config(open_file, "adapter_config.json")
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise _unsupported(f"its peft_type is {_brief(peft_type)}; only LORA is audited")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 65_536:
        raise _unsupported(f"its rank `r` is {_brief(rank)}")
    with open_file("adapter_model.safetensors") as stream:
        check_safetensors(stream, sizes["adapter_model.safetensors"], "adapter_model.safetensors")
    base = config.get("base_model_name_or_path")
    return AdapterFacts(
        rank=rank,
        target_modules=_targets(config.get("target_modules")),
        base_model_name=_clean(base)[:400] if isinstance(base, str) and base else None,
    )


def _targets(value: Any) -> list[str]:  # noqa: ANN401  (decoded JSON)
    """`target_modules` is a list of names, or one regular expression (never run here)."""
    names: list[Any] = [value] if isinstance(value, str) else cast("list[Any]", value or [])
    if not isinstance(value, (list, str, type(None))) or len(names) > MAX_TARGETS:
        raise _unsupported("its target_modules are neither a list nor a name")
    if not all(isinstance(name, str) and len(name) <= 1000 for name in names):
        raise _unsupported("its target_modules are not all names")
    return sorted(_clean(name) for name in names)


def inspect_model(open_file: Open, sizes: dict[str, int]) -> str | None:
    """Check a model's configuration files and weights; its architecture, such as `LlamaForCausalLM`."""
    config = read_config(open_file, "config.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        if name in sizes:
            read_config(open_file, name)
    weights = sorted(name for name in sizes if name.endswith(".safetensors"))
    tensors: set[str] = set()
    for name in weights:
        with open_file(name) as stream:
            tensors.update(check_safetensors(stream, sizes[name], name))
    for name in sizes:
        if name.endswith(".safetensors.index.json"):
            _check_index(read_config(open_file, name), name, set(weights))
    architectures = config.get("architectures")
    first: Any = architectures[0] if isinstance(architectures, list) and architectures else None
    return _clean(first)[:200] if isinstance(first, str) else None


def _check_index(index: dict[str, Any], name: str, weights: set[str]) -> None:
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict):
        raise ProblemError(422, "bad_config", f"{name} has no weight_map.", param="upload_id")
    missing = sorted({str(file) for file in cast("dict[str, Any]", mapping).values()} - weights)
    if missing:
        detail = f"{name} names files that were not sent: {', '.join(missing[:5])}."
        raise ProblemError(422, "file_missing", detail, param="upload_id")


def _unsupported(reason: str) -> ProblemError:
    return ProblemError(
        422, "unsupported_adapter", f"This adapter cannot be audited: {reason}.", param="upload_id"
    )


def _brief(value: Any) -> str:  # noqa: ANN401
    return repr(value)[:80]


def _clean(text: str) -> str:
    """Text for the database: PostgreSQL cannot hold U+0000."""
    return text.replace("\0", "")


def _read(stream: BinaryIO, count: int) -> bytes:
    """Exactly `count` bytes, or what there is until the end."""
    content = bytearray()
    while len(content) < count:
        chunk = stream.read(count - len(content))
        if not chunk:
            break
        content += chunk
    return bytes(content)
