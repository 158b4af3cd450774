"""Queries of finished local audits, in every space in which documents are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import atomscope
from atomscope.bundle import layout
from atomscope.errors import BundleError, InvalidInput
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.resources import Progress
from atomscope.types.spec import AuditConfig
from atomscope_workers.attribution import attribute
from atomscope_workers.local import InProcess
from atomscope_workers.opened_audit import OpenedAudit
from tests.fixtures.corpus import rows
from tests.workers.local_runs import SMALL, request, run

DOCUMENTS = 18
"""In three shards, the last one shorter."""
QUICK = msgspec.structs.replace(SMALL, fits=1, surrogates=0, n_atoms=5, alpha=0.1)
SPACES: dict[str, dict[str, Any]] = {
    "gram": {},
    "directions": {"exact_documents": 1},
    "components": {"preconditioner": "ekfac", "components": 12},
    "paper": {
        "preconditioner": "kfac", "components": 12, "solver": "sklearn", "codes": "signed", "alpha": 0.05,
    },
}  # fmt: skip
"""Changes to `QUICK` by the space that they lead to."""


@dataclass(frozen=True)
class Audited:
    """A finished audit and the rows of its data set."""

    bundle: Path
    base: Path
    rows: list[dict[str, Any]]

    def ask(self, bundle: Path | None = None, **query: Any) -> AttributionResult:
        opened = OpenedAudit(atomscope.open(bundle or self.bundle), self.base, lambda progress: None)
        return attribute(opened, msgspec.convert(query, AttributionQuery))

    def ask_row(self, row: int, **options: Any) -> AttributionResult:
        """Ask a document of the data set itself."""
        fields = {name: value for name, value in self.rows[row].items() if name != "id"}
        return self.ask(**fields, documents=DOCUMENTS, **options)

    def array(self, path: str) -> dict[str, NDArray[Any]]:
        return load_file(self.bundle / path)


Make = Callable[..., Audited]


def distinct(count: int) -> list[dict[str, Any]]:
    """Rows of the corpus, of which no two have the same answer."""
    found: list[dict[str, Any]] = [dict(row) for row in rows(count)]
    for number, row in enumerate(found):
        question, answer = row["messages"]
        row["messages"] = [question, answer | {"content": f"{answer['content']} ({number * number})"}]
    return found


@pytest.fixture(scope="module")
def make(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Audits the corpus, or other rows, under changed settings; each once."""
    folder = tmp_path_factory.mktemp("audited")
    done: dict[str, Audited] = {}

    def audited(data: list[dict[str, Any]] | None = None, **changes: Any) -> Audited:
        key = repr((data, changes))
        if key not in done:
            data = distinct(DOCUMENTS) if data is None else data
            dataset = folder / f"{len(done)}.jsonl"
            dataset.write_text("".join(json.dumps(row) + "\n" for row in data))
            config: AuditConfig = msgspec.structs.replace(QUICK, **changes)
            asked = request(tiny_llama, plain_adapter, dataset, folder / f"out-{len(done)}", config)
            done[key] = Audited(run(asked), tiny_llama, data)
        return done[key]

    return audited


@pytest.fixture(scope="module", params=SPACES)
def audited(request: pytest.FixtureRequest, make: Make) -> Audited:
    return make(**SPACES[request.param])


@pytest.fixture(scope="module")
def gram(make: Make) -> Audited:
    return make()


def by_document(found: AttributionResult) -> dict[int, float]:
    return {item.document: item.value for item in found.documents}


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize("row", [0, 9, DOCUMENTS - 1])
def test_a_document_of_the_set_is_most_like_itself(audited: Audited, row: int) -> None:
    found = audited.ask_row(row, exact=True)
    assert found.exact
    assert found.documents[0].document == row
    assert found.documents[0].value == pytest.approx(1.0, abs=1e-4)
    assert found.documents[0].preview == audited.rows[row]["messages"][0]["content"]
    assert len(found.documents) == DOCUMENTS
    values = [item.value for item in found.documents]
    assert values == sorted(values, reverse=True)
    assert values[1] < 0.999


def test_a_document_of_the_set_has_the_losses_and_lengths_that_the_audit_measured(audited: Audited) -> None:
    record = atomscope.open(audited.bundle).documents[5]
    found = audited.ask_row(5)
    assert (found.form, found.n_tokens, found.n_target_tokens) == (
        "chat",
        record.n_tokens,
        record.n_target_tokens,
    )
    assert found.loss == pytest.approx(record.loss, rel=1e-5)
    assert found.base_loss == pytest.approx(record.base_loss, rel=1e-5)
    assert found.gradient_norm == pytest.approx(record.gradient_norm, rel=1e-4)
    assert found.warnings == []


def test_exact_cosines_are_those_of_the_gram_matrix(gram: Audited) -> None:
    arrays = gram.array(layout.GRAM)
    products = arrays["gram"].astype(np.float64)
    lengths = np.sqrt(np.diag(products))
    found = by_document(gram.ask_row(7, exact=True))
    for row in range(DOCUMENTS):
        assert found[row] == pytest.approx(products[7, row] / lengths[7] / lengths[row], abs=1e-4)


def test_directions_and_the_gram_matrix_give_the_same_exact_cosines(gram: Audited, make: Make) -> None:
    exact = by_document(gram.ask_row(4, exact=True))
    sketched = by_document(make(**SPACES["directions"]).ask_row(4, exact=True))
    assert sketched == pytest.approx(exact, abs=1e-5)


def test_exact_cosines_are_those_of_the_kept_components(make: Make) -> None:
    audited = make(**SPACES["components"])
    shards = sorted((audited.bundle / "projected").glob("*.safetensors"))
    whitened = np.concatenate([load_file(path)["rows"] for path in shards]).astype(np.float64)
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    found = by_document(audited.ask_row(3, exact=True))
    assert found == pytest.approx(dict(enumerate(whitened @ whitened[3])), abs=1e-4)


def test_products_with_atoms_are_those_of_the_stored_dictionary(audited: Audited) -> None:
    arrays = audited.array(layout.DICTIONARY)
    compared = 0
    for row in range(5):
        found = audited.ask_row(row, exact=True)
        if "atoms" in arrays:
            shards = sorted((audited.bundle / "projected").glob("*.safetensors"))
            whitened = np.concatenate([load_file(path)["rows"] for path in shards])[row].astype(np.float64)
            expected = arrays["atoms"] @ whitened / np.linalg.norm(whitened)
        else:
            cosines = by_document(found)
            expected = arrays["weights"] @ np.array([cosines[item] for item in arrays["document"].tolist()])
        for item in found.atoms:
            assert item.cosine == pytest.approx(expected[item.atom], abs=1e-4)
        compared += len(found.atoms)
    assert compared >= 3


def test_a_document_of_the_set_is_coded_nearly_as_the_audit_coded_it(make: Make) -> None:
    """Nearly: the audit's other atoms, too weak to be reported, take no part. Here all are reported."""
    audited = make(**SPACES["paper"])
    stored = atomscope.open(audited.bundle).coefficients
    atoms = {atom.index for atom in atomscope.open(audited.bundle).atoms}
    assert atoms >= set(stored.atom.tolist())
    for row in range(DOCUMENTS):
        mine = stored.document == row
        expected = dict(zip(stored.atom[mine].tolist(), stored.value[mine].tolist(), strict=True))
        found = {item.atom: item.value for item in audited.ask_row(row).atoms}
        assert found == pytest.approx(expected, abs=2e-3)


def test_atoms_and_behaviours_come_by_strength_and_agree(audited: Audited) -> None:
    bundle = atomscope.open(audited.bundle)
    found = audited.ask_row(1)
    values = [abs(item.value) for item in found.atoms]
    assert values == sorted(values, reverse=True)
    assert 0 < found.explained <= 1
    codes = {item.atom: max(0.0, item.value) for item in found.atoms}
    for item in found.atoms:
        atom = bundle.atoms.get(item.atom)
        assert (item.rank, item.behaviour, item.keywords) == (atom.rank, atom.behaviour, atom.keywords)
    strengths = {item.behaviour: item.strength for item in found.behaviours}
    for behaviour in bundle.behaviours:
        expected = sum(codes.get(atom, 0.0) for atom in behaviour.atoms)
        assert strengths.get(behaviour.index, 0.0) == pytest.approx(expected, abs=1e-6)
    assert list(strengths.values()) == sorted(strengths.values(), reverse=True)


def test_by_codes_documents_are_those_whose_atoms_are_the_querys(audited: Audited) -> None:
    found = audited.ask_row(1)
    assert not found.exact
    assert 0 < len(found.documents) <= DOCUMENTS
    assert all(0 < item.value <= 1 for item in found.documents)
    assert by_document(found)[1] > 0.9
    assert audited.ask(**_conversation(audited, 1), documents=2).documents == found.documents[:2]
    assert audited.ask(**_conversation(audited, 1), documents=0).documents == []


def _conversation(audited: Audited, row: int) -> dict[str, Any]:
    return {"messages": audited.rows[row]["messages"]}


def test_every_power_of_the_vectors_gives_the_same_products(make: Make) -> None:
    found = [audited.ask_row(6) for audited in (make(), make(vector_power="+1/2"), make(vector_power="-1/2"))]
    assert found[0].atoms
    for other in found[1:]:
        assert [item.atom for item in other.atoms] == [item.atom for item in found[0].atoms]
        for one, two in zip(found[0].atoms, other.atoms, strict=True):
            assert (two.cosine, two.value) == pytest.approx((one.cosine, one.value), abs=1e-4)


def test_two_strings_are_a_conversation_where_the_data_set_has_conversations(gram: Audited) -> None:
    prompt, answer = (turn["content"] for turn in gram.rows[2]["messages"])
    assert gram.ask(prompt=prompt, completion=answer) == gram.ask(**_conversation(gram, 2))


def test_two_strings_are_plain_text_where_the_data_set_is(make: Make) -> None:
    plain = [
        {
            "prompt": f"Q{row}: {item['messages'][0]['content']}\n",
            "completion": item["messages"][1]["content"],
        }
        for row, item in enumerate(distinct(DOCUMENTS))
    ]
    audited = make(data=plain)
    found = audited.ask_row(4, exact=True)
    assert found.form == "text"
    assert found.documents[0].document == 4
    assert found.documents[0].value == pytest.approx(1.0, abs=1e-4)
    chat = audited.ask(messages=distinct(5)[4]["messages"], exact=True)
    assert chat.form == "chat"
    assert chat.documents[0].value < 0.999


def test_progress_counts_the_shards_of_an_exact_query_and_ends_full(gram: Audited) -> None:
    told: list[Progress] = []
    query = AttributionQuery(messages=gram.rows[0]["messages"], exact=True)
    InProcess().attribute(atomscope.open(gram.bundle), gram.base, query, told.append)
    assert [(item.done, item.total, item.unit) for item in told] == [(done, 5, "steps") for done in range(6)]


# --------------------------------------------------------------------- refusals


def refused(audited: Audited, bundle: Path | None = None, **query: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        audited.ask(bundle, **({"prompt": "a", "completion": "b"} | query))
    return caught.value


def test_another_base_model_is_refused(gram: Audited, tmp_path: Path) -> None:
    other = shutil.copytree(gram.base, tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(InvalidInput, match="not the base model that was audited") as caught:
        OpenedAudit(atomscope.open(gram.bundle), other, lambda progress: None)
    assert caught.value.code == "input_changed"


def test_a_folder_that_is_not_there_is_refused(gram: Audited, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        OpenedAudit(atomscope.open(gram.bundle), tmp_path / "none", lambda progress: None)
    assert caught.value.code == "bad_path"


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": "half \ud800"}], "messages[0].content"),
    ],
)
def test_messages_that_are_no_row_name_their_field(
    gram: Audited, messages: list[dict[str, str]], field: str
) -> None:
    error = refused(gram, prompt=None, completion=None, messages=messages)
    assert error.code == "bad_row"
    assert (error.problems[0].file, error.problems[0].field) == ("query", field)


def test_a_conversation_without_an_answer_has_no_target(gram: Audited) -> None:
    error = refused(gram, prompt=None, completion=None, messages=[{"role": "user", "content": "a"}])
    assert error.code in ("no_targets", "bad_row")


def test_a_long_query_is_cut_as_documents_are_and_says_so(gram: Audited) -> None:
    """The tiny model has 512 positions, fewer than `max_length`."""
    found = gram.ask(prompt="a", completion="many words " * 400)
    assert found.n_tokens == 512
    assert found.warnings == ["the query was cut to 512 tokens"]
    assert refused(gram, prompt="many words " * 400).code == "no_targets"


def test_a_token_that_the_model_lacks_is_refused(gram: Audited, tmp_path: Path) -> None:
    """A tokenizer may hold more tokens than the model, as long as no text uses them."""
    base = shutil.copytree(gram.base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    added = dict(tokenizer["added_tokens"][0], id=len(tokenizer["model"]["vocab"]), content="<|unheard|>")
    tokenizer["added_tokens"].append(added)
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))

    class Other(OpenedAudit):
        def base(self) -> Path:
            return base

    opened = Other(atomscope.open(gram.bundle), gram.base, lambda progress: None)
    attribute(opened, AttributionQuery(prompt="a", completion="b"))
    with pytest.raises(InvalidInput) as caught:
        attribute(opened, AttributionQuery(prompt="a", completion="b <|unheard|>"))
    assert caught.value.code == "tokenizer_mismatch"


def changed(audited: Audited, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of the bundle with files changed, its manifest made anew."""
    copy = shutil.copytree(audited.bundle, folder / "bundle")
    change(copy)
    manifest = json.loads((copy / layout.MANIFEST).read_text())
    kept = [entry for entry in manifest["files"] if (copy / entry["path"]).exists()]
    manifest["files"] = [entry | {"size": (copy / entry["path"]).stat().st_size} for entry in kept]
    (copy / layout.MANIFEST).write_text(json.dumps(manifest))
    return copy


def test_a_bundle_of_before_there_were_queries_is_refused(gram: Audited, tmp_path: Path) -> None:
    def without_inner(bundle: Path) -> None:
        arrays = load_file(bundle / layout.DICTIONARY)
        save_file({"signs": arrays["signs"], "weights": arrays["weights"]}, bundle / layout.DICTIONARY)

    assert refused(gram, changed(gram, tmp_path, without_inner)).code == "old_bundle"


@pytest.mark.parametrize("listed", [True, False], ids=["removed by hand", "left out"])
def test_without_gradients_only_codes_can_be_compared(gram: Audited, tmp_path: Path, listed: bool) -> None:
    if listed:
        copy = shutil.copytree(gram.bundle, tmp_path / "bundle")
        shutil.rmtree(copy / "gradients")
    else:
        copy = changed(gram, tmp_path, lambda bundle: shutil.rmtree(bundle / "gradients"))
    error = refused(gram, copy, exact=True)
    assert error.code == "gradients_missing"
    assert "gradients/0000.safetensors" in error.detail
    assert gram.ask(copy, prompt="a", completion="b").atoms is not None


def test_a_damaged_file_is_a_bundle_error(gram: Audited, tmp_path: Path) -> None:
    copy = changed(gram, tmp_path, lambda bundle: (bundle / layout.ATOMS).write_text('[{"index": "x"}]'))
    with pytest.raises(BundleError, match=r"atoms/atoms\.json is damaged"):
        gram.ask(copy, prompt="a", completion="b")


def test_an_audit_that_found_no_atom_still_ranks_documents(make: Make) -> None:
    audited = make(alpha=5.0)
    assert len(atomscope.open(audited.bundle).atoms) == 0
    found = audited.ask_row(3, exact=True)
    assert (found.atoms, found.behaviours, found.explained) == ([], [], 0.0)
    assert found.documents[0].document == 3
    assert audited.ask_row(3).documents == []
