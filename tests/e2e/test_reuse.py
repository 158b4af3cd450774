"""Refits, second audits and grown data sets, the whole way: nothing that is stored is extracted again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import atomscope
from atomscope.bundle import layout
from atomscope.cli.registry import LocalRun
from atomscope.store import LocalStore
from atomscope.types.spec import AuditConfig
from tests.e2e.computed import computed, run_alone
from tests.fixtures.corpus import write_corpus
from tests.fixtures.stack import ATOMSCOPE, Stack, environment, running_stack

SMALL = AuditConfig(
    dtype="float32",
    shard_documents=8,
    token_budget=256,
    n_atoms=6,
    alpha=0.05,
    min_active=2,
    top_documents=4,
    fits=2,
    surrogates=1,
)
DOCUMENTS = 12
GROWN = 18
OTHER: dict[str, Any] = {"n_atoms": 4, "alpha": 0.1, "seed": 3}


class Site:
    """A stack of its own, and what its store holds."""

    def __init__(
        self, stack: Stack, client: atomscope.Client, folder: Path, base: Path, adapter: Path
    ) -> None:
        self.stack, self.client, self.folder, self.adapter = stack, client, folder, adapter
        self.folder_of_base, self.base = base, stack.register_model("tiny", base)

    def dataset(self, documents: int) -> Path:
        return write_corpus(self.folder / f"{documents}.jsonl", documents)

    def audit(self, documents: int = DOCUMENTS, **settings: Any) -> atomscope.Audit:
        return self.client.audits.create(
            base_model=self.base,
            adapter=self.adapter,
            dataset=self.dataset(documents),
            config=msgspec.structs.replace(SMALL, **settings),
        ).wait(timeout=180)

    def keys(self) -> list[str]:
        """Every key of the store; what is deleted meanwhile is left out."""
        return [item.key for item in LocalStore(self.stack.data_dir / "store").list("projects/")]

    def shards(self) -> dict[str, list[str]]:
        """Ids of the audits that extracted -> first row and size of each shard in the store."""
        found: dict[str, list[str]] = {}
        for key in self.keys():
            if key.endswith(f"/{layout.ENTRY}"):
                _, _, _, extraction, name, _, _ = key.split("/")
                found.setdefault(extraction, []).append(name[:17])
        return found

    def gradient_files(self, audit: str = "") -> list[str]:
        """Keys of every file of gradients, whoever's; of an audit, those that name it."""
        keys = [key for key in self.keys() if key.endswith(".safetensors") and "gradients" in key]
        return [key for key in keys if audit in key]

    def local(self, documents: int = DOCUMENTS, **settings: Any) -> Path:
        """The same audit in this process: it shares nothing with the service."""
        config = msgspec.structs.replace(SMALL, **settings)
        out = self.folder / f"local-{len(list(self.folder.iterdir()))}"
        request = LocalRun(
            base_model=self.folder_of_base,
            adapter=self.adapter,
            dataset=self.dataset(documents),
            out=out,
            config=config,
        )
        return run_alone(request)

    def download(self, audit: atomscope.Audit) -> Path:
        return audit.download(self.folder / audit.id)


def verified(bundle: Path) -> dict[str, str]:
    """What an audit computed; the bundle is verified."""
    opened = atomscope.open(bundle)
    opened.verify()
    return computed(opened)


def extracted(audit: atomscope.Audit) -> int:
    """Documents whose gradients the audit itself computed."""
    return audit.report().details["documents_extracted"]


def soon(check: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def site(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {
        "ATOMSCOPE_LEASE_SECONDS": "3",
        "ATOMSCOPE_HEARTBEAT_SECONDS": "0.5",
        "ATOMSCOPE_SWEEP_SECONDS": "1",
    }
    with running_stack(settings=settings) as stack, stack.client() as client:
        yield Site(stack, client, tmp_path_factory.mktemp("reuse"), tiny_llama, plain_adapter)


@pytest.fixture(scope="module")
def first(site: Site) -> atomscope.Audit:
    audit = site.audit()
    assert extracted(audit) == DOCUMENTS
    assert list(site.shards()) == [audit.id]
    return audit


@pytest.fixture(scope="module")
def fresh(site: Site) -> dict[str, str]:
    """What a whole audit with the other settings computes."""
    return verified(site.local(**OTHER))


@pytest.fixture(scope="module")
def refit(site: Site, first: atomscope.Audit) -> atomscope.Audit:
    return first.refit(config=OTHER, name="again").wait(timeout=180)


def test_a_refit_extracts_nothing_and_equals_a_fresh_audit(
    site: Site, first: atomscope.Audit, refit: atomscope.Audit, fresh: dict[str, str]
) -> None:
    assert (refit.parent, refit.name, refit.config.n_atoms) == (first.id, "again", 4)
    assert extracted(refit) == 0
    assert list(site.shards()) == [first.id]
    assert site.gradient_files(refit.id) == []
    bundle = site.download(refit)
    assert verified(bundle) == fresh
    assert atomscope.open(bundle).manifest.parent == first.id


def test_a_second_audit_of_equal_inputs_reads_what_is_stored(
    site: Site, first: atomscope.Audit, fresh: dict[str, str]
) -> None:
    second = site.audit(**OTHER)
    assert extracted(second) == 0
    assert list(site.shards()) == [first.id]
    assert verified(site.download(second)) == fresh
    second.delete()


def test_of_a_grown_data_set_only_the_new_documents_are_extracted(site: Site, first: atomscope.Audit) -> None:
    grown = site.audit(GROWN)
    assert extracted(grown) == GROWN - DOCUMENTS
    assert site.shards()[first.id] == ["0000000000-000008", "0000000008-000004"]
    assert site.shards()[grown.id] == ["0000000012-000006"]
    bundle, whole = site.download(grown), site.local(GROWN)
    own = atomscope.open(bundle)
    own.verify()
    assert [len(shard.documents) for shard in own.plan.shards] == [8, 4, 6]
    gradients, expected = (_joined(atomscope.open(path)) for path in (bundle, whole))
    for name, tensor in expected.items():
        norms = np.linalg.norm(tensor.reshape(GROWN, -1), axis=1)
        apart = np.linalg.norm((gradients[name] - tensor).reshape(GROWN, -1), axis=1)
        assert (apart <= 1e-5 * norms.max()).all(), name
    gram, other = (load_file(path / layout.GRAM)["gram"] for path in (bundle, whole))
    assert np.abs(gram - other).max() <= 1e-3 * np.abs(other).max()
    grown.delete()
    assert soon(lambda: list(site.shards()) == [first.id])


def _joined(bundle: atomscope.Bundle) -> dict[str, Any]:
    shards = list(bundle.gradients())
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def test_the_command_line_refits_by_id(site: Site, first: atomscope.Audit, refit: atomscope.Audit) -> None:
    connection = {"ATOMSCOPE_BASE_URL": site.stack.url, "ATOMSCOPE_API_KEY_FILE": str(site.stack.key_file)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ATOMSCOPE), "audit", "refit", first.id, "--json", *more],
            capture_output=True,
            text=True,
            check=False,
            env=environment(connection),
        )

    done = run("--n-atoms", "4", "--alpha", "0.1", "--seed", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["audit"]["parent"] == first.id
    assert [atom["index"] for atom in found["atoms"]] == [atom.index for atom in refit.atoms]
    refused = run("--out", "bundle")
    assert refused.returncode == 4
    assert "--out has no meaning" in json.loads(refused.stdout)["error"]["detail"]


def test_what_cannot_be_refitted_is_refused_by_name(site: Site, first: atomscope.Audit) -> None:
    path = f"/v1/audits/{first.id}/refits"

    def refused(body: dict[str, Any], target: str = path) -> tuple[int, str, str | None]:
        with pytest.raises(atomscope.APIStatusError) as caught:
            site.client.raw("POST", target, body=body)
        return caught.value.status, caught.value.code, caught.value.param

    assert refused({"config": {"max_length": 64}}) == (422, "needs_extraction", "config.max_length")
    template = {"preset": "paper", "config": {"chat_template": "chatml"}}
    assert refused(template) == (422, "needs_extraction", "config.chat_template")
    assert refused({"config": {"n_atoms": 0}})[::2] == (400, "config.n_atoms")
    assert refused({"preset": "none"})[::2] == (400, "preset")
    assert refused({}, f"/v1/audits/aud_{0:032x}/refits")[:2] == (404, "not_found")
    with pytest.raises(atomscope.UsageError, match="`max_length` decides what is extracted"):
        first.refit(config={"max_length": 64})


def test_without_gradients_findings_stay_and_refits_are_refused(site: Site, first: atomscope.Audit) -> None:
    """Of an audit that let go of them, and of one that kept none; another template is extracted anew."""
    expired, kept_none = site.audit(chat_template="zephyr"), site.audit(gradients="none")
    assert extracted(expired) == DOCUMENTS
    assert set(site.shards()) == {first.id, expired.id}
    assert soon(lambda: site.gradient_files(kept_none.id) == [])  # with its other work, two leases later
    assert expired.delete_gradients().resource.gradients == "expired"
    assert soon(lambda: list(site.shards()) == [first.id])
    for audit, code in ((expired, "gradients_expired"), (kept_none, "gradients_not_kept")):
        assert audit.refresh().resource.gradients == ("none" if audit is kept_none else "expired")
        with pytest.raises(atomscope.ConflictError) as refused:
            audit.refit(config={"seed": 5})
        assert refused.value.code == code
        bundle = atomscope.open(site.download(audit))
        left = [] if audit is kept_none else [layout.gradient_shard(0), layout.gradient_shard(1)]
        assert bundle.verify() == left
        assert bundle.gradients_kept == audit.resource.gradients
        assert [atom.index for atom in bundle.atoms] == [atom.index for atom in audit.atoms]
        audit.delete()


def test_of_a_sketch_a_refit_is_that_of_all_gradients_but_for_its_vectors(site: Site) -> None:
    kept = site.audit(gradients="sketch")
    assert kept.refresh().resource.gradients == "sketch"
    assert soon(lambda: site.gradient_files(kept.id) == [])  # with its other work, two leases later
    with pytest.raises(atomscope.APIStatusError) as refused:
        site.client.raw("POST", f"/v1/audits/{kept.id}/refits", body={"config": {"damping": 0.1}})
    assert (refused.value.status, refused.value.code) == (422, "needs_extraction")
    assert refused.value.param == "config.damping"
    child = kept.refit(config=OTHER).wait(timeout=180)
    bundle, whole = atomscope.open(site.download(child)), atomscope.open(site.local(**OTHER))
    assert (bundle.verify(), bundle.gradients_kept, extracted(child)) == ([], "sketch", 0)
    paths = (layout.DICTIONARY, layout.COEFFICIENTS, layout.HIERARCHY, layout.CURVATURE)
    found, expected = computed(bundle), computed(whole)
    assert [found[path] for path in paths] == [expected[path] for path in paths]
    for atom in bundle.atoms:
        assert atom.vector_cosine is not None
        near, exact = (
            np.concatenate([part.ravel() for part in opened.vector(atom.index).values()])
            for opened in (bundle, whole)
        )
        cosine = near @ exact / np.linalg.norm(near) / np.linalg.norm(exact)
        assert cosine == pytest.approx(atom.vector_cosine, abs=1e-4)
    again = child.refit(config=OTHER | {"seed": 5}).wait(timeout=180)
    kept.delete()
    assert atomscope.open(site.download(again)).verify() == []


def test_many_documents_have_the_coordinates_that_one_machine_gives_them_and_refits_take_them_over(
    site: Site,
) -> None:
    """Found by workers that share the parameters, kept by every bundle, of `gradients: sketch` too."""
    along: dict[str, Any] = {"exact_documents": 4, "sketch_columns": 64, "directions": 2}
    other: dict[str, Any] = {"n_atoms": 4, "alpha": 0.1}
    first, kept = site.audit(**along), site.audit(**along, gradients="sketch")
    children = [parent.refit(config=other).wait(timeout=180) for parent in (first, kept)]
    paths = (layout.DIRECTIONS, layout.DICTIONARY, layout.COEFFICIENTS, layout.HIERARCHY)
    for audits, settings in (((first, kept), along), (children, along | other)):
        expected = computed(atomscope.open(site.local(**settings)))
        for audit in audits:
            bundle = atomscope.open(site.download(audit))
            found = computed(bundle)
            assert bundle.verify() == []
            assert [found[path] for path in paths] == [expected[path] for path in paths]
            assert bundle.report.details["directions"]["directions"] == 2
    for audit in (*children, first, kept):
        audit.delete()


def test_a_parent_is_kept_while_a_refit_reads_it_and_its_gradients_while_any_audit_does(
    site: Site, first: atomscope.Audit, refit: atomscope.Audit, fresh: dict[str, str]
) -> None:
    """A refit races with deletions of its parent: it is never the refit that loses."""
    racing = first.refit(config=OTHER)
    refusals: set[str] = set()
    while not racing.refresh().resource.ended_at:
        try:
            first.delete()
        except atomscope.ConflictError as error:
            refusals.add(error.code)
        except atomscope.NotFoundError:
            break  # deleted, in the moment after the end
        time.sleep(0.05)
    assert refusals == {"resource_in_use"}
    racing.wait(timeout=180)
    if first.id in {audit.id for audit in site.client.audits.list()}:
        first.delete()
    assert verified(site.download(racing)) == fresh
    # Its gradients serve whoever is left, and the refits of those, and another audit of the same inputs.
    grandchild = racing.refit(config={"seed": 9}).wait(timeout=180)
    assert (grandchild.parent, extracted(grandchild)) == (racing.id, 0)
    assert site.shards() == {first.id: ["0000000000-000008", "0000000008-000004"]}
    for audit in list(site.client.audits.list()):
        if audit.id != grandchild.id:
            audit.delete()
    time.sleep(8)  # past two leases, and a round of cleaning
    assert site.shards() == {first.id: ["0000000000-000008", "0000000008-000004"]}
    assert extracted(site.audit(seed=4)) == 0
    verified(site.download(grandchild))
    for audit in list(site.client.audits.list()):
        audit.delete()
    assert soon(lambda: site.gradient_files() == [] and site.shards() == {})
