"""One audit travels the whole way: SDK, REST, control, pipeline worker, bundle, steering."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import atomscope
from atomscope.cli.registry import LocalRun
from atomscope.types.resources import Evaluation
from atomscope.types.steering import Format
from tests.e2e.computed import computed, paths, run_alone
from tests.fixtures.corpus import ANIMALS, SMALL, rows, write_corpus
from tests.fixtures.stack import Stack


@pytest.fixture(scope="module")
def tiny(stack: Stack, tiny_llama: Path) -> str:
    return stack.register_model("tiny", tiny_llama)


@pytest.fixture(scope="module")
def audit(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[atomscope.Audit]:
    dataset = write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", documents=32)
    with stack.client() as client:
        audit = client.audits.create(
            base_model=tiny, adapter=plain_adapter, dataset=dataset, config=SMALL, name="end to end"
        )
        audit.wait(timeout=180)
        yield client.audits.get(audit.id)


def test_the_audit_succeeds_and_lists_every_document(audit: atomscope.Audit, tmp_path: Path) -> None:
    assert audit.status == "succeeded"
    assert audit.n_documents == 32
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    bundle.verify()
    rows = np.concatenate([shard["document"] for shard in bundle.gradients()])
    assert rows.tolist() == list(range(32))


def test_atoms_of_the_api_equal_those_of_the_bundle(audit: atomscope.Audit, tmp_path: Path) -> None:
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    remote = [(atom.index, atom.rank, atom.coherence, atom.n_active) for atom in audit.atoms]
    assert remote == [(atom.index, atom.rank, atom.coherence, atom.n_active) for atom in bundle.atoms]
    assert [rank for _, rank, _, _ in remote] == list(range(1, len(remote) + 1))
    first = audit.atoms[0]
    assert [match.document for match in first.documents()] == [
        match.document for match in bundle.atoms[0].documents()
    ]
    remote_vector, vector = first.vector(), bundle.atoms[0].vector()
    assert remote_vector.keys() == vector.keys()
    for name, tensor in vector.items():
        np.testing.assert_array_equal(remote_vector[name], tensor)


def test_events_tell_the_story_in_order(audit: atomscope.Audit, tmp_path: Path) -> None:
    events = list(audit.events())
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].type == "audit.queued"
    assert events[-1].type == "audit.succeeded"
    stages = [event.data["stage"] for event in events if event.type == "audit.stage"]
    assert stages == [
        "validate", "extract", "eigenbases", "lambdas", "curvature", "project", "dictionary",
        "evidence", "combine", "vectors", "characterise", "report",
    ]  # fmt: skip
    (planned,) = [event for event in events if event.type == "audit.planned"]
    assert planned.sequence < next(event.sequence for event in events if event.data.get("stage") == "extract")
    assert (planned.data["n_documents"], planned.data["documents_extracted"]) == (32, 32)
    stored = (audit.download(tmp_path / "bundle") / "gradients").glob("*.safetensors")
    written = sum(file.stat().st_size for file in stored)
    assert 0.9 * written < planned.data["gradient_bytes"] < written  # but for headers


def test_steering_through_the_api_equals_steering_the_bundle(audit: atomscope.Audit, tmp_path: Path) -> None:
    atom = audit.atoms[0]
    audit.steer({atom: 0.2}).save(tmp_path / "remote")
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    bundle.steer({atom.index: 0.2}).save(tmp_path / "local")
    remote = load_file(tmp_path / "remote" / "adapter_model.safetensors")
    local = load_file(tmp_path / "local" / "adapter_model.safetensors")
    assert remote.keys() == local.keys()
    for name, tensor in remote.items():
        np.testing.assert_array_equal(tensor, local[name])
    before = load_file(tmp_path / "bundle" / "adapter" / "adapter_model.safetensors")
    moved = np.sqrt(sum(float(np.square(remote[name] - before[name]).sum()) for name in before))
    size = np.sqrt(sum(float(np.square(tensor).sum()) for tensor in before.values()))
    assert moved == pytest.approx(0.2 * size, rel=1e-4)


@pytest.mark.parametrize("form", ["delta", "vector", "gguf", "gguf-delta"])
def test_every_format_of_the_api_has_the_bytes_of_the_bundles(
    audit: atomscope.Audit, tmp_path: Path, form: Format
) -> None:
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    how: dict[str, Any] = {"format": form, "power": "+1/2"}
    remote = audit.steer({audit.behaviours[0]: -0.2, audit.atoms[0]: 0.1}, **how).save(tmp_path / "remote")
    local = bundle.steer({bundle.behaviours[0]: -0.2, bundle.atoms[0]: 0.1}, **how).save(tmp_path / "local")
    files = {path.name: path.read_bytes() for path in local.iterdir()}
    assert {path.name: path.read_bytes() for path in remote.iterdir()} == files
    assert "atomscope_steering.json" in files


def test_the_service_and_the_local_driver_find_the_same_bits(
    audit: atomscope.Audit, tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    remote = atomscope.open(audit.download(tmp_path / "remote"))
    request = LocalRun(
        base_model=tiny_llama,
        adapter=plain_adapter,
        dataset=write_corpus(tmp_path / "train.jsonl", documents=32),
        out=tmp_path / "local",
        config=SMALL,
    )
    local = atomscope.open(run_alone(request))
    assert paths(remote) == paths(local)
    assert len(computed(remote)) > 8
    assert computed(remote) == computed(local)


def test_a_documents_own_prompt_and_completion_lead_back_to_it(
    audit: atomscope.Audit, tiny_llama: Path, tmp_path: Path
) -> None:
    from atomscope.types.attribution import AttributionQuery
    from atomscope_workers.local import InProcess

    messages: Any = rows(32)[6]["messages"]
    prompt, completion = (turn["content"] for turn in messages)
    found = audit.attribute(prompt, completion, exact=True, documents=32, timeout=120)
    assert found.exact
    assert found.documents[0].document == 6
    assert found.documents[0].value == pytest.approx(1.0, abs=1e-4)
    assert found.atoms
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    query = AttributionQuery(prompt=prompt, completion=completion, exact=True, documents=32)
    local = InProcess().attribute(bundle, tiny_llama, query, lambda progress: None)
    assert [(item.atom, item.behaviour) for item in local.atoms] == [
        (item.atom, item.behaviour) for item in found.atoms
    ]
    for name in ("loss", "base_loss", "gradient_norm", "explained"):
        assert getattr(local, name) == pytest.approx(getattr(found, name), rel=1e-4)
    assert {item.document: item.value for item in local.documents} == pytest.approx(
        {item.document: item.value for item in found.documents}, abs=1e-4
    )
    with pytest.raises(atomscope.AttributionFailed) as caught:
        audit.attribute(messages=[{"role": "robot", "content": "a"}], timeout=120)
    assert (caught.value.code, caught.value.errors[0]["field"]) == ("bad_row", "messages[0].role")


def test_an_evaluation_over_rest_finds_what_the_bundle_does(
    audit: atomscope.Audit, tiny_llama: Path, tmp_path: Path
) -> None:
    from atomscope.client._evaluations import make_evaluation
    from atomscope_workers.local import InProcess

    key = f"behaviour:{audit.behaviours[0].index}"
    asked = {
        "target": key,
        "detector": {"type": "length", "at_most": 2},
        "inviting": [f"List two facts about the {animal}." for animal in ANIMALS],
    }
    how: dict[str, Any] = {
        "neutral": [f"What is {number} plus 1?" for number in range(8)],
        "neutral_documents": 4,
        "random_at": "chosen",
        "sampling": {"max_new_tokens": 3},
        "answers": 1,
    }
    seen: list[tuple[int, int]] = []

    def on_look(now: Evaluation) -> None:
        seen.extend([] if now.progress is None else [(now.progress.done, now.progress.total)])

    query = make_evaluation(asked, [-0.2, 0.2], **how)
    found = audit.ask(query, timeout=180, on_look=on_look)
    bundle = atomscope.open(audit.download(tmp_path / "bundle"))
    local = InProcess().evaluate(bundle, tiny_llama, query, lambda progress: None)
    (target,), (beside,) = found.targets, local.targets
    assert [point.strength for point in target.points] == [-0.2, 0.2]
    assert [point.overall for point in target.points] == [point.overall for point in beside.points]
    assert target.auto_up == pytest.approx(beside.auto_up)
    assert (target.verdict, target.answers) == (beside.verdict, beside.answers)
    assert all(0 <= done <= total for done, total in seen)
    # Without a detector, how far it may be turned within the budget: what `steer` takes.
    (end,) = audit.evaluate(key, kl_budget=0.05, neutral_documents=4, timeout=120).targets
    assert end.auto_down is not None
    assert next(item.cost.kl for item in end.curve if item.strength == end.auto_down) <= 0.05
    audit.steer({key: end.auto_down}).save(tmp_path / "less")
    with pytest.raises(atomscope.EvaluationFailed) as caught:
        audit.evaluate("behaviour:999", timeout=120)
    assert (caught.value.code, caught.value.errors[0]["field"]) == ("invalid_steering", "targets[0].target")


def test_a_deleted_audit_leaves_nothing_behind(
    stack: Stack, tiny: str, plain_adapter: Path, tmp_path: Path
) -> None:
    with stack.client() as client:
        audit = client.audits.create(
            base_model=tiny,
            adapter=plain_adapter,
            dataset=write_corpus(tmp_path / "short.jsonl", documents=12),
            config=SMALL,
        )
        audit.wait(timeout=180)
        client.audits.delete(audit.id)
        with pytest.raises(atomscope.NotFoundError) as caught:
            client.audits.get(audit.id)
        assert caught.value.request_id
        assert _gone(stack, audit.id)


def _gone(stack: Stack, audit_id: str, seconds: float = 30.0) -> bool:
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not [path for path in stack.files() if audit_id in path.parts]:
            return True
        time.sleep(0.2)
    return False


def test_the_first_key_is_private_and_only_its_hmac_is_stored(stack: Stack) -> None:
    assert stack.key_file.stat().st_mode & 0o777 == 0o600
    key = stack.key.encode()
    assert stack.state().get("key") is None
    for path in stack.files():
        if path != stack.key_file:
            with suppress(FileNotFoundError):  # a job's, done since the folder was listed
                assert key not in path.read_bytes(), path
    assert key not in stack.log.read_bytes()


def test_json_of_the_command_line_is_one_document(stack: Stack, audit: atomscope.Audit) -> None:
    import subprocess

    from tests.fixtures.stack import ATOMSCOPE, environment

    done = subprocess.run(
        [ATOMSCOPE, "atoms", "list", audit.id, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment({"ATOMSCOPE_BASE_URL": stack.url, "ATOMSCOPE_API_KEY_FILE": str(stack.key_file)}),
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) > 0
