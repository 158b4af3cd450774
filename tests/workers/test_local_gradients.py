"""What a local audit keeps of its gradients: fewer bits find the same, `none` keeps nothing and says so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import atomscope
from atomscope.bundle import Bundle, layout
from atomscope.errors import InvalidInput
from atomscope.types.spec import StoredGradients
from atomscope_workers.local import InProcess
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import (
    SMALL,
    check_that_only_codes_compare,
    contents,
    partial,
    refit,
    request,
    run,
)

CONFIG = msgspec.structs.replace(SMALL, fits=2, surrogates=0)
OWN = {layout.MANIFEST, layout.SPEC, layout.REPORT}


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, plain_adapter: Path
) -> dict[StoredGradients, Path]:
    """One audit a setting, of equal inputs."""
    folder = tmp_path_factory.mktemp("kept")
    data = write_corpus(folder / "train.jsonl", 14)
    settings: tuple[StoredGradients, ...] = ("float32", "bfloat16", "float16", "none")
    return {
        setting: run(
            request(
                tiny_llama,
                plain_adapter,
                data,
                folder / setting,
                msgspec.structs.replace(CONFIG, gradients=setting),
            )
        )
        for setting in settings
    }


def gradients(bundle: Bundle) -> dict[str, np.ndarray]:
    shards = list(bundle.gradients())
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


@pytest.mark.parametrize(("setting", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_sixteen_bits_are_half_the_size_and_within_their_precision(
    bundles: dict[StoredGradients, Path], setting: StoredGradients, bits: int
) -> None:
    whole, half = atomscope.open(bundles["float32"]), atomscope.open(bundles[setting])
    half.verify()
    assert (half.plan.gradient_dtype, half.gradients_kept) == (setting, "kept")
    assert half.report.details["gradients"] == {"kept": setting, "disables": []}
    exact, found = gradients(whole), gradients(half)
    assert exact.keys() == found.keys()
    for name, value in exact.items():
        assert found[name].dtype == value.dtype
        assert (np.abs(found[name] - value) <= np.abs(value) * 2.0**-bits).all()

    def size(bundle: Bundle) -> int:
        path = layout.gradient_shard(0)
        return next(entry.size for entry in bundle.manifest.files if entry.path == path)

    assert size(half) < 0.6 * size(whole)


@pytest.mark.parametrize(("setting", "error"), [("bfloat16", 2e-3), ("float16", 2e-4)])
def test_sixteen_bits_leave_inner_products_as_they_are(
    bundles: dict[StoredGradients, Path], setting: StoredGradients, error: float
) -> None:
    def cosines(bundle: Path) -> np.ndarray:
        gram = load_file(bundle / layout.GRAM)["gram"]
        norms = np.sqrt(gram.diagonal())
        return gram / norms / norms[:, None]

    assert np.abs(cosines(bundles[setting]) - cosines(bundles["float32"])).max() < error


def test_auto_is_float32_for_a_small_set(bundles: dict[StoredGradients, Path], tmp_path: Path) -> None:
    spec = atomscope.open(bundles["float32"]).spec
    asked = request(
        Path(spec.base_model.location), Path(spec.adapter.location), Path(spec.dataset.location),
        tmp_path / "auto", CONFIG,
    )  # fmt: skip
    estimate = InProcess().estimate(asked)
    assert estimate.details["gradients"] == "float32"
    told = estimate.details["gradient_bytes_by_setting"]
    held = sum(path.stat().st_size for path in (bundles["float32"] / "gradients").glob("*.safetensors"))
    assert told["float32"] == pytest.approx(held, rel=0.02, abs=4096)
    assert told["none"] == 0
    assert told["float16"] < 0.6 * told["float32"]
    assert told["bfloat16"] == pytest.approx(told["float32"] / 2)


@pytest.mark.parametrize("setting", ["bfloat16", "float16"])
def test_a_refit_of_sixteen_bits_is_a_whole_audit_with_its_settings(
    bundles: dict[StoredGradients, Path], tmp_path: Path, setting: StoredGradients
) -> None:
    """Back to the parent's own settings, by way of others: equal to the byte."""
    parent = bundles[setting]
    middle = refit(parent, tmp_path / "middle", preconditioner="kfac")
    child = refit(middle, tmp_path / "child", preconditioner=CONFIG.preconditioner)
    files, others = contents(child), contents(parent)
    assert files.keys() == others.keys()
    assert {path for path in files if files[path] != others[path]} <= OWN
    assert atomscope.open(child).plan.gradient_dtype == setting


def test_without_gradients_everything_else_is_there_and_equal(bundles: dict[StoredGradients, Path]) -> None:
    with_them, without = bundles["float32"], bundles["none"]
    bundle = atomscope.open(without)
    bundle.verify()
    files, others = contents(without), contents(with_them)
    assert {path for path in others.keys() - files.keys() if not path.startswith("gradients/")} == set()
    assert not [path for path in files if path.startswith("gradients/")]
    assert {path for path in files if files[path] != others[path]} <= OWN
    assert bundle.gradients_kept == "none"
    assert bundle.report.details["gradients"]["kept"] == "none"
    assert "refits" in bundle.report.details["gradients"]["disables"]
    assert not partial(without).exists()


def test_what_needs_gradients_is_refused_by_the_settings_name(
    bundles: dict[StoredGradients, Path], tmp_path: Path
) -> None:
    without = bundles["none"]
    with pytest.raises(InvalidInput, match="`gradients: none`") as refused:
        refit(without, tmp_path / "child", seed=3)
    assert refused.value.code == "gradients_not_kept"
    assert list(tmp_path.iterdir()) == []
    check_that_only_codes_compare(atomscope.open(without))


def test_padding_is_reported(bundles: dict[StoredGradients, Path]) -> None:
    bundle = atomscope.open(bundles["float32"])
    # Of these documents two tokens are not read: the end of the turn, a target, and a line break behind it.
    lengths = {row: record.n_tokens - 2 for row, record in bundle.documents.items()}
    padded = sum(
        len(batch) * max(lengths[row] for row in batch)
        for shard in bundle.plan.shards
        for batch in shard.micro_batches
    )
    told = bundle.report.details["padding"]
    assert (told["tokens"], told["padded_tokens"]) == (sum(lengths.values()), padded)
    assert told["share"] == pytest.approx(1 - sum(lengths.values()) / padded)
    assert 0 < told["share"] < 1
