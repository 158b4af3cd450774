"""What an audit cannot do without is added up before it starts, and told with numbers where it cannot fit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import atomscope
from atomscope.errors import InvalidInput
from atomscope.types.spec import AuditConfig
from atomscope_workers import models
from atomscope_workers.local import InProcess
from atomscope_workers.memory import Free, Need, fit_needs, needs, require_memory
from atomscope_workers.models.base import build_meta_base, check_base
from atomscope_workers.models.device_memory import LIMIT_VARIABLE
from atomscope_workers.models.offload import FITS
from atomscope_workers.pipeline.plan import make_plan
from atomscope_workers.stages import inputs, planning
from atomscope_workers.stages.sizes import fewest_groups, shapes_of
from atomscope_workers.stages.token_budget import MOST
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import SMALL, partial, request, run

CPU = torch.device("cpu")
ATTENTION = "model.layers.0.self_attn."
PARAMETERS = {
    f"{ATTENTION}q_proj.lora_A.weight": (2, 10),
    f"{ATTENTION}v_proj.lora_A.weight": (2, 10),
    f"{ATTENTION}q_proj.lora_B.weight": (6, 2),
    f"{ATTENTION}v_proj.lora_B.weight": (4, 2),
    "model.layers.0.mlp.up_proj.lora_A.weight": (2, 10),
}
LENGTHS = {0: 8, 1: 8, 2: 3}


def floors(config: AuditConfig, *, recompute: bool = False) -> dict[str, dict[str, int]]:
    plan = make_plan(
        LENGTHS, LENGTHS, n_rows=3, token_budget=16, shard_documents=3,
        compute_dtype="bfloat16", device_kind="cpu", recompute=recompute,
    )  # fmt: skip
    groups = fewest_groups(PARAMETERS)
    shapes = shapes_of(config, 3, PARAMETERS, groups, "float32")
    found = needs(shapes, plan, LENGTHS, {0: 5, 1: 2, 2: 1}, vocabulary=100, model=999, item=2, hidden=70)
    return {f"{need.stage} on the host" if need.on_host else need.stage: need.parts for need in found}


def test_a_floor_counts_what_is_certain_by_part() -> None:
    """Batches are rows 0 and 1 of 8 tokens each, and row 2 alone."""
    found = floors(AuditConfig())
    d = 2 * 10 * 3 + 6 * 2 + 4 * 2
    squares = 3 * 2**2 + 6**2 + 4**2 + 2 * 10**2 + 2**2  # one input for q and v, one for up, one for both B
    assert found["extract"] == {
        "the model's weights": 999,
        "inputs of layers": 2 * (10 + 10 + 2) * 16,
        "logits": 4 * 100 * 7,
        "gradients of a micro-batch": 4 * d * 2,
        "curvature sums": 4 * squares,
    }
    assert found["eigenbases on the host"] == {"curvature sums": 12 * squares}
    assert found["curvature on the host"] == {"eigenvectors": 4 * squares, "lambda": 16 * d}
    assert found["dictionary on the host"] == {"inner products of the documents": 8 * 9}
    codes = {"codes of the documents": 8 * 3 * 3}
    assert found["dictionary"] == {"inner products of the documents": 4 * 9} | codes
    assert found["evidence"] == {"inner products of the documents, while a surrogate is made": 12 * 9}
    assert found["project"] == {"inner products of the documents": 12 * 9}
    alone = floors(AuditConfig(surrogates=0))
    assert alone["evidence"] == {"inner products of the documents": 4 * 9} | codes
    along = floors(AuditConfig(exact_documents=1, sketch_columns=64, directions=2))
    assert along["directions on the host"] == {"the sketch": 12 * 3 * 64}
    assert along["directions"] == {"the sketch": 4 * 3 * 64, "directions": 8 * 3 * 2}
    assert along["along"] == {"sums along directions": 4 * 2 * d // 64}
    assert along["directions_again on the host"] == {"products with directions": 12 * 3 * 2}
    assert along["dictionary on the host"] == {"coordinates along directions": 12 * 3 * 2}
    weights = {"weights of the documents in atoms": 8 * 3 * 3}
    of_both = {"coordinates along directions, and of a surrogate": 4 * 3 * 2 * 2}
    assert along["evidence"] == of_both | codes | weights
    cut = floors(AuditConfig(preconditioner="ekfac", components=3))
    assert cut["dictionary on the host"] == {"whitened rows": 12 * 3 * 15}
    assert cut["evidence"] == {"whitened rows, and of a surrogate": 4 * 3 * 15 * 2} | codes


def test_scikit_learn_s_solver_holds_its_coordinates_in_float64_on_the_host() -> None:
    spec = AuditConfig(preconditioner="ekfac", components=3, solver="sklearn", codes="signed", alpha=0.1)
    shapes = shapes_of(spec, 3, PARAMETERS, fewest_groups(PARAMETERS), "float32")
    wanted = [need.parts for need in fit_needs(shapes) if need.on_host]
    assert {"float64 coordinates": 24 * 3 * 3, "codes of the documents": 8 * 3 * shapes.pieces} in wanted
    with pytest.raises(InvalidInput, match=r"or `solver: torch`, fewer `components`$"):
        require_memory(fit_needs(shapes)[-1:], Free("cpu", 0, 0))


def test_a_sketch_is_kept_along_directions_of_all_inner_products() -> None:
    found = floors(AuditConfig(gradients="sketch"))
    assert found["vectors on the host"] == {"inner products of the documents, decomposed": 12 * 9}
    assert "vectors on the host" not in floors(AuditConfig())


def test_recomputed_layers_hold_their_inputs_and_one_layer() -> None:
    kept, recomputed = (floors(AuditConfig(), recompute=item)["extract"] for item in (False, True))
    assert recomputed == {**kept, "inputs of layers": 2 * (70 + 10 + 10 + 2) * 16}
    two = {name.replace(".0.", f".{layer}."): shape for name, shape in PARAMETERS.items() for layer in (0, 1)}
    shapes = shapes_of(AuditConfig(), 3, two, fewest_groups(two), "float32")
    assert sum(shapes.inputs.values()) == 2 * shapes.layer_inputs == 2 * (10 + 10 + 2)


def test_what_does_not_fit_is_told_by_stage_part_and_remedy() -> None:
    wanted = [Need("extract", {"a": 2**29, "b": 2**30}), Need("dictionary", {"c": 2**32}, on_host=True)]
    require_memory(wanted, Free("cpu", 2**32, 2**32))
    with pytest.raises(InvalidInput) as caught:
        require_memory(wanted, Free("cpu", 2**32, 2**32 - 1))
    assert caught.value.code == "not_enough_memory"
    assert (
        "`dictionary` needs at least 4.00 GiB and 4.00 GiB are free on cpu: c 4.00 GiB" in caught.value.detail
    )
    assert "`exact_documents`" in caught.value.detail
    with pytest.raises(InvalidInput, match=r"`extract` needs at least 1.50 GiB .*: b 1.00 GiB, a 0.50 GiB"):
        require_memory(wanted, Free("cpu", 2**30, 2**32))


def test_what_a_gpu_and_its_host_hold_is_compared_with_what_is_free_on_either() -> None:
    """Sums and inner products are made on the host: a small GPU of a large host audits a large adapter."""
    plan = make_plan(
        LENGTHS, LENGTHS, n_rows=3, token_budget=16, shard_documents=3,
        compute_dtype="bfloat16", device_kind="cuda",
    )  # fmt: skip
    shapes = shapes_of(AuditConfig(), 3, PARAMETERS, fewest_groups(PARAMETERS), "float32")
    wanted = needs(shapes, plan, LENGTHS, {0: 5, 1: 2, 2: 1}, vocabulary=100, model=999, item=2)
    host = max(need.bytes for need in wanted if need.on_host)
    device = max(need.bytes for need in wanted if not need.on_host)
    codes = 8 * 3 * 3
    fits = [need for need in wanted if not need.on_host and need.stage in ("dictionary", "evidence")]
    assert [need.bytes for need in fits] == [4 * 9 + codes, 4 * 9 * 2 + codes, 12 * 9]
    require_memory(wanted, Free("cuda", device, host))
    with pytest.raises(InvalidInput, match=r"are free on the host: "):
        require_memory(wanted, Free("cuda", 2**40, host - 1))
    with pytest.raises(InvalidInput, match=r"`extract` needs .* are free on cuda: "):
        require_memory(wanted, Free("cuda", device - 1, 2**40))


def _thousand(device: torch.device) -> int:
    return 1000


def test_a_local_audit_that_cannot_fit_is_refused_before_the_model_is_loaded(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(planning, "free_bytes", _thousand)
    monkeypatch.setattr(models.load, "load_base", load)
    asked = request(tiny_llama, plain_adapter, write_corpus(tmp_path / "a.jsonl", 4), tmp_path / "out")
    for ask in (run, InProcess().estimate):
        with pytest.raises(
            InvalidInput, match=r"`extract` needs at least [\d.]+ MiB .* free on cpu"
        ) as caught:
            ask(asked)
        assert caught.value.code == "not_enough_memory"
    assert not (tmp_path / "out").exists()
    assert not partial(tmp_path / "out").exists()


def test_an_audit_on_a_device_that_holds_one_layer_has_the_same_bits(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(SMALL, fits=1, surrogates=0, token_budget=48)
    data = write_corpus(tmp_path / "a.jsonl", 10)
    whole = atomscope.open(run(request(tiny_llama, plain_adapter, data, tmp_path / "whole", config)))
    base = build_meta_base(check_base(tiny_llama))
    free = int(4 * sum(item.numel() for item in base.parameters()) / FITS) - 1
    monkeypatch.setenv(LIMIT_VARIABLE, str(free))
    inputs._kept.clear()  # pyright: ignore[reportPrivateUsage]
    split = atomscope.open(run(request(tiny_llama, plain_adapter, data, tmp_path / "split", config)))
    inputs._kept.clear()  # pyright: ignore[reportPrivateUsage]
    assert (whole.plan.recompute, split.plan.recompute) == (False, True)
    for left, right in zip(whole.gradients(), split.gradients(), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name])
    assert [atom.atom for atom in whole.atoms] == [atom.atom for atom in split.atoms]


def test_an_audit_of_auto_finds_its_budget_and_the_same_gradients(
    tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setenv("ATOMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(MOST, "cpu", 512)
    config = msgspec.structs.replace(SMALL, fits=1, surrogates=0)
    data = write_corpus(tmp_path / "a.jsonl", 10)
    found = [
        atomscope.open(run(request(tiny_llama, plain_adapter, data, tmp_path / f"{budget}", settings)))
        for budget in ("auto", 64)
        for settings in [msgspec.structs.replace(config, token_budget=budget)]
    ]
    assert (found[0].spec.config.token_budget, found[0].plan.token_budget) == ("auto", 512)
    assert found[0].report.details["padding"]["share"] != found[1].report.details["padding"]["share"]
    one, other = (list(bundle.gradients()) for bundle in found)
    for left, right in zip(one, other, strict=True):
        for name, value in left.items():
            scale = float(np.abs(value).max())
            np.testing.assert_allclose(value, right[name], rtol=0, atol=1e-5 * scale)
