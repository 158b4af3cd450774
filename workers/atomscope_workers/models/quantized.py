"""Quantised base models: refused, each by the name of its method, with what to give instead."""

from __future__ import annotations

from typing import Any

from atomscope_workers.models.folder import refuse

_METHODS = {
    "aqlm": "AQLM",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "spqr": "SpQR",
    "torchao": "TorchAO",
    "vptq": "VPTQ",
}


def check_full_precision(config: dict[str, Any]) -> None:
    """Raise `InvalidInput` (`quantized_model`) where the `config.json` of a base says it is quantised."""
    for field in ("quantization_config", "compression_config"):
        settings = config.get(field)
        if settings:
            method = _method_of(settings) if isinstance(settings, dict) else "quantised"
            raise refuse(
                "quantized_model",
                f"{method} weights are not accepted, since a gradient through them is another than the "
                "model's. Give the base that was quantised, in float32, bfloat16 or float16: an adapter that "
                "was trained on quantised weights (QLoRA) is accepted with it",
                file="config.json",
                field=field,
            )


def _method_of(settings: dict[str, Any]) -> str:
    method = settings.get("quant_method")
    if method == "bitsandbytes" or (method is None and {"load_in_4bit", "load_in_8bit"} & settings.keys()):
        four = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
        eight = settings.get("load_in_8bit") or settings.get("_load_in_8bit")
        return f"bitsandbytes {'4-bit' if four else '8-bit' if eight else 'quantised'}"
    if isinstance(method, str):
        return _METHODS.get(method, f"quantised ({method[:40]!r})")
    return "quantised"
