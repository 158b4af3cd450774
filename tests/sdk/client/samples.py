"""Resources as the service answers them."""

from __future__ import annotations

import json
from typing import Any

NOW = "2026-11-23T00:00:00Z"


def an_id(prefix: str, number: int = 1) -> str:
    return f"{prefix}_{number:032x}"


AUDIT, MODEL, ADAPTER, DATASET = an_id("aud"), an_id("mdl"), an_id("ada"), an_id("ds")


def model(number: int = 1, **changes: Any) -> dict[str, Any]:
    told = {
        "id": an_id("mdl", number), "name": f"model {number}", "source": "registered", "status": "ready",
        "sha256": "0" * 64, "size": 10, "architecture": None, "hub_id": None, "revision": None, "error": None,
        "created_at": NOW, "object": "model",
    }  # fmt: skip
    return {**told, **changes}


def adapter(**changes: Any) -> dict[str, Any]:
    told = {
        "id": ADAPTER, "name": "adapter", "sha256": "0" * 64, "size": 10, "rank": 8,
        "target_modules": ["q_proj"], "base_model_name": None, "created_at": NOW, "object": "adapter",
    }  # fmt: skip
    return {**told, **changes}


def dataset(**changes: Any) -> dict[str, Any]:
    told = {
        "id": DATASET, "name": "train", "format": "jsonl", "sha256": "0" * 64, "size": 10,
        "created_at": NOW, "object": "dataset",
    }  # fmt: skip
    return {**told, **changes}


def audit(status: str = "queued", number: int = 1, **changes: Any) -> dict[str, Any]:
    told = {
        "id": an_id("aud", number), "name": None, "status": status, "stage": None, "progress": None,
        "base_model": MODEL, "adapter": ADAPTER, "dataset": DATASET, "config": {}, "metadata": {},
        "n_documents": 12, "n_atoms": 2, "warnings": [], "error": None, "created_at": NOW,
        "started_at": None, "ended_at": None, "object": "audit",
    }  # fmt: skip
    return {**told, **changes}


def atom(index: int, rank: int, **changes: Any) -> dict[str, Any]:
    told = {
        "index": index, "rank": rank, "coherence": 1 / (rank + 1), "null_coherence": 0.01,
        "null_coherence_95": 0.05, "n_active": 10 + rank, "n_positive": 9, "n_negative": 1, "sign": 1,
        "mean_coefficient": 0.5, "energy_retained": 0.3, "vector_norm": 2.0,
        "keywords": ["tea", f"word{index}"],
        "top_documents": [{"document": 4, "value": 0.9, "preview": "how to make tea"}],
        "bottom_documents": [], "label": None,
    }  # fmt: skip
    return {**told, **changes}


def behaviour(index: int, rank: int, **changes: Any) -> dict[str, Any]:
    told = {
        "index": index, "rank": rank, "score": 0.5, "atoms": [7], "n_documents": 3, "share": 0.25,
        "coherence": 0.5, "null_coherence": 0.01, "null_coherence_95": 0.05, "evidence": {},
        "keywords": ["tea"], "top_documents": [{"document": 4, "value": 0.9, "preview": "how to make tea"}],
        "documents": [], "label": None,
    }  # fmt: skip
    return {**told, **changes}


def match(document: int, text: str = "tea, please") -> dict[str, Any]:
    return {
        "document": document, "value": 0.5, "id": str(document), "n_tokens": 5, "n_target_tokens": 2,
        "loss": 1.5, "messages": [{"role": "user", "content": text}],
    }  # fmt: skip


def steered(**changes: Any) -> dict[str, Any]:
    told = {
        "id": an_id("str"), "name": None, "audit": AUDIT, "strengths": {"3": 0.1}, "size": 10,
        "format": "adapter", "unit": "norm", "power": "0", "created_at": NOW, "object": "steered_adapter",
    }  # fmt: skip
    return {**told, **changes}


def attribution(status: str = "queued", **changes: Any) -> dict[str, Any]:
    query = {"prompt": "p", "completion": "c", "messages": None, "exact": False, "documents": 20}
    told = {
        "id": an_id("atr"), "audit": AUDIT, "status": status, "progress": None, "query": query,
        "result": attribution_result() if status == "succeeded" else None, "error": None, "created_at": NOW,
        "started_at": None, "ended_at": None, "object": "attribution",
    }  # fmt: skip
    return {**told, **changes}


def attribution_result(**changes: Any) -> dict[str, Any]:
    told = {
        "form": "chat", "n_tokens": 9, "n_target_tokens": 4, "loss": 2.0, "base_loss": 10.0,
        "gradient_norm": 0.5, "explained": 0.25, "exact": False,
        "atoms": [
            {"atom": 7, "rank": 2, "value": 0.5, "cosine": 0.6, "behaviour": 1, "keywords": ["tea"],
             "label": None},
        ],
        "behaviours": [{"behaviour": 1, "rank": 1, "strength": 0.5, "keywords": ["tea"], "label": None}],
        "documents": [{"document": 4, "value": 0.9, "preview": "how to make tea"}], "warnings": [],
    }  # fmt: skip
    return {**told, **changes}


def evaluation(status: str = "queued", **changes: Any) -> dict[str, Any]:
    query = {"targets": [{"target": "behaviour:3", "detector": {"type": "named", "name": "yes_no"}}]}
    told = {
        "id": an_id("evl"), "audit": AUDIT, "status": status, "progress": None, "query": query,
        "result": evaluation_result() if status == "succeeded" else None, "error": None, "created_at": NOW,
        "started_at": None, "ended_at": None, "object": "evaluation",
    }  # fmt: skip
    return {**told, **changes}


def evaluation_result(**changes: Any) -> dict[str, Any]:
    told = {
        "targets": [evaluated_target()], "baseline_cost": {"kl": 0.0, "perplexity": 8.0},
        "neutral_documents": 16, "n_neutral_tokens": 400, "seconds": 90.0, "warnings": [],
    }  # fmt: skip
    return {**told, **changes}


def evaluated_target(**changes: Any) -> dict[str, Any]:
    up = {"strength": 0.2, "shift": 0.4, "kl": 0.12, "verdict": "steers"}
    told = {
        "target": "behaviour:3", "name": None, "verdict": "steers", "up": up, "down": None, "auto_up": 0.2,
        "auto_down": None, "gain": 0.1,
        "curve": [
            {"strength": strength, "cost": {"kl": 3 * strength * strength, "perplexity": 8 + abs(strength)}}
            for strength in (-0.4, -0.1, 0.1, 0.2)
        ],
        "baseline_inviting": share(6), "baseline_neutral": share(1), "baseline": share(3, 48),
        "points": [evaluated_point(-0.1, 0.02), evaluated_point(0.2, 0.4, verdict="steers", q_value=0.004)],
        "unrelated": 5,
        "answers": [
            {"kind": "inviting", "prompt": "is tea good?", "base": "tea is fine", "up": "yes", "down": None},
        ],
        "others": {"behaviour:1": -0.4, "behaviour:2": 0.01},
    }  # fmt: skip
    return {**told, **changes}


def evaluated_point(strength: float, shift: float, **changes: Any) -> dict[str, Any]:
    chance = {"shifts": [0.01] * 20, "costs": [0.1] * 20, "percentile_95": 0.05, "p_value": 0.001}
    told = {
        "strength": strength, "cost": {"kl": 0.12, "perplexity": 8.2}, "inviting": share(12),
        "neutral": share(3), "overall": share(15, 48), "shift": shift, "selection_shift": shift,
        "within_budget": True, "equal_norm": {"match": "norm", **chance},
        "equal_kl": {"match": "kl", **chance, "percentile_95": 0.07}, "unrelated": share(3, 48),
        "q_value": 0.5, "verdict": "indistinguishable from random",
    }  # fmt: skip
    return {**told, **changes}


def share(hits: int, n: int = 24) -> dict[str, Any]:
    value = hits / n
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "n": n, "hits": hits}


def event(sequence: int, type_: str, **data: Any) -> dict[str, Any]:
    told = {"id": an_id("evt", sequence), "audit_id": AUDIT, "sequence": sequence, "type": type_}
    return {**told, "data": data, "created_at": NOW}


def sse(*events: dict[str, Any]) -> bytes:
    """Events as the service streams them."""
    return b"".join(
        b"id: %d\nevent: %s\ndata: %s\n\n"
        % (told["sequence"], told["type"].encode(), json.dumps(told, ensure_ascii=False).encode())
        for told in events
    )
