"""One audit whose every byte goes through a real S3 server, and the same one in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atomscope
from atomscope.cli.registry import LocalRun
from tests.e2e.computed import FOLDERS, computed, paths, run_alone
from tests.fixtures.corpus import SMALL, rows
from tests.fixtures.s3 import S3Server
from tests.fixtures.stack import Stack, running_stack

MIB = 1 << 20
DOCUMENTS = 16


class Bucket:
    """The store of the stack, looked at behind its back."""

    def __init__(self, server: S3Server, name: str) -> None:
        self._client, self.name = server.client(), name
        self.uri = f"s3://{name}/team"

    def keys(self, part: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key for key in found if part in key]

    def parts(self, key: str) -> int:
        """Parts that an object was sent in."""
        tag = self._client.head_object(Bucket=self.name, Key=key)["ETag"].strip('"')
        return int(tag.partition("-")[2] or 1)

    def open_uploads(self) -> list[Any]:
        return self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield Bucket(s3_server, s3_server.new_bucket())


@pytest.fixture(scope="module")
def s3_stack(
    s3_server: S3Server, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    settings = {
        "ATOMSCOPE_STORE": bucket.uri,
        "ATOMSCOPE_PART_BYTES": str(5 * MIB),
        "ATOMSCOPE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with running_stack(settings=s3_server.environment | settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts' worth of JSONL, most of it a field that an audit does not read."""
    lines = [
        row | {"note": "x" * (6 * MIB if number == 0 else 0)} for number, row in enumerate(rows(DOCUMENTS))
    ]
    path = tmp_path_factory.mktemp("corpus") / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def audit(
    s3_stack: Stack, bucket: Bucket, tiny_llama: Path, plain_adapter: Path, dataset: Path
) -> Iterator[atomscope.Audit]:
    with s3_stack.client() as client:
        audit = client.audits.create(
            base_model=tiny_llama, adapter=plain_adapter, dataset=dataset, config=SMALL
        )
        audit.wait(timeout=180)
        yield audit


@pytest.fixture(scope="module")
def local(tiny_llama: Path, plain_adapter: Path, dataset: Path) -> atomscope.Bundle:
    request = LocalRun(
        base_model=tiny_llama,
        adapter=plain_adapter,
        dataset=dataset,
        out=dataset.parent / "local",
        config=SMALL,
    )
    return atomscope.open(run_alone(request))


@pytest.fixture(scope="module")
def on_s3(audit: atomscope.Audit, bucket: Bucket) -> atomscope.Bundle:
    """The bundle, opened where the worker left it: no service is asked."""
    (manifest,) = [key for key in bucket.keys(audit.id) if key.endswith("/manifest.json")]
    return atomscope.open(f"s3://{bucket.name}/{manifest.removesuffix('/manifest.json')}")


def test_inputs_and_outputs_are_in_the_bucket_and_nowhere_else(
    s3_stack: Stack, audit: atomscope.Audit, bucket: Bucket
) -> None:
    assert audit.status == "succeeded"
    assert {key.split("/")[0] for key in bucket.keys("")} == {"team"}
    for folder, names in (
        ("models", {"config.json", "model.safetensors", "tokenizer.json"}),
        ("adapters", {"adapter_config.json", "adapter_model.safetensors"}),
        ("datasets", {"data.jsonl"}),
    ):
        assert names <= {key.rpartition("/")[2] for key in bucket.keys(f"/{folder}/")}
    (data,) = bucket.keys("/datasets/")
    assert bucket.parts(data) == 2
    assert bucket.open_uploads() == []
    assert not (s3_stack.data_dir / "store").exists()
    assert not [path for path in s3_stack.files() if path.suffix in (".safetensors", ".parquet", ".jsonl")]


def test_the_bundle_on_s3_equals_that_of_a_local_run(
    on_s3: atomscope.Bundle, local: atomscope.Bundle, audit: atomscope.Audit
) -> None:
    on_s3.verify()
    assert paths(on_s3) == paths(local)
    remote, here = computed(on_s3), computed(local)
    assert {path.partition("/")[0] + "/" for path in remote} >= set(FOLDERS)
    assert remote == here
    assert on_s3.report.atoms == local.report.atoms
    assert (on_s3.report.loss_base, on_s3.report.loss_adapter) == (
        local.report.loss_base,
        local.report.loss_adapter,
    )
    assert on_s3.spec.config == local.spec.config
    assert (on_s3.manifest.audit_id, on_s3.report.n_documents) == (audit.id, DOCUMENTS)


def test_the_api_reads_atoms_documents_and_vectors_from_the_bucket(
    audit: atomscope.Audit, on_s3: atomscope.Bundle
) -> None:
    assert [atom.atom for atom in audit.atoms] == [atom.atom for atom in on_s3.atoms]
    assert len(audit.atoms) > 0
    remote, direct = audit.atoms[0], on_s3.atoms[0]
    assert remote.documents() == direct.documents()
    vector = remote.vector()
    assert vector.keys() == direct.vector().keys()
    for name, tensor in direct.vector().items():
        np.testing.assert_array_equal(vector[name], tensor)


def test_the_download_is_the_bundle(audit: atomscope.Audit, on_s3: atomscope.Bundle, tmp_path: Path) -> None:
    downloaded = atomscope.open(audit.download(tmp_path / "bundle"))
    downloaded.verify()
    assert downloaded.manifest == on_s3.manifest


def test_a_steered_adapter_comes_from_the_bucket(
    audit: atomscope.Audit, on_s3: atomscope.Bundle, tmp_path: Path
) -> None:
    atom = on_s3.atoms[0].index
    audit.steer({atom: 0.2}).save(tmp_path / "remote")
    on_s3.steer({atom: 0.2}).save(tmp_path / "direct")
    name = "adapter_model.safetensors"
    assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


def test_a_refit_reads_the_gradients_where_they_lie_and_a_second_audit_too(
    s3_stack: Stack, audit: atomscope.Audit, bucket: Bucket, on_s3: atomscope.Bundle, tmp_path: Path
) -> None:
    gradients = [key for key in bucket.keys("gradients") if key.endswith(".safetensors")]
    assert len(gradients) == len(on_s3.plan.shards)
    with s3_stack.client() as client:
        second = client.audits.create(
            base_model=audit.resource.base_model,
            adapter=audit.resource.adapter,
            dataset=audit.resource.dataset,
            config=SMALL,
        )
        for again in (audit.refit().wait(timeout=180), second.wait(timeout=180)):
            assert again.report().details["documents_extracted"] == 0
            assert [key for key in bucket.keys("gradients") if key.endswith(".safetensors")] == gradients
            bundle = atomscope.open(again.download(tmp_path / again.id))
            bundle.verify()
            digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
            expected = {entry.path: entry.sha256 for entry in on_s3.manifest.files}
            for path, digest in expected.items():
                assert not path.startswith(FOLDERS) or digests[path] == digest, path
            again.delete()


def test_a_deleted_audit_leaves_the_bucket_and_its_inputs_stay(
    s3_stack: Stack, audit: atomscope.Audit, bucket: Bucket, on_s3: atomscope.Bundle, dataset: Path
) -> None:
    """Last of this file: the audit is gone after it."""
    with s3_stack.client() as client:
        assert bucket.keys(audit.id)
        client.audits.delete(audit.id)
        _wait_until(lambda: not bucket.keys(audit.id))
        with pytest.raises(atomscope.NotFoundError):
            client.audits.get(audit.id)
        assert client.datasets.get(audit.resource.dataset).size == dataset.stat().st_size
    with pytest.raises(atomscope.BundleError, match="missing from the bundle"):
        on_s3.file("curvature/curvature.safetensors")
    assert bucket.keys("/datasets/")
    _wait_until(lambda: not bucket.keys("/uploads/"))


def _wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("what was deleted is still in the bucket")
        time.sleep(0.2)
