"""`atoms`, `steer` and `bundle`, on a bundle with no service and on an audit of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import atomscope
from atomscope.bundle import layout
from atomscope.cli.hierarchy import tree_text
from atomscope.steering import read_tensors
from atomscope.steering.names import peft_name
from atomscope.types.atoms import Behaviour
from atomscope.types.hierarchy import Hierarchy, Merge
from tests.sdk.cli.running import Run
from tests.sdk.cli.small_bundle import relist
from tests.sdk.client.samples import AUDIT, an_id, atom, audit, match, steered
from tests.sdk.client.server import Answer, ScriptedServer, page, problem

UNSAFE = set("\x1b\x07\x9b\r\u202e\u2066")


@pytest.fixture
def audited(server: ScriptedServer) -> ScriptedServer:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("GET", f"/v1/audits/{AUDIT}/atoms", Answer(200, page([atom(7, 1), atom(3, 2)])))
    return server


def _indices(out: str) -> list[int]:
    return [int(line.split()[1]) for line in out.splitlines()[1:] if line[0] != "."]


def test_atoms_of_a_bundle_are_listed_by_rank_with_nothing_that_acts(run: Run, bundle: Path) -> None:
    for target in (str(bundle), f"file://{bundle}"):
        done = run("atoms", "list", target)
        assert (done.status, _indices(done.out)) == (0, [5, 0, 2])
        assert not set(done.out) & UNSAFE


@pytest.mark.parametrize(
    ("flags", "indices"),
    [
        (["--sort=-coherence"], [5, 0, 2]),
        (["--sort", "coherence"], [2, 0, 5]),
        (["--sort", "index"], [0, 2, 5]),
        (["--min-coherence", "0.3"], [5, 0]),
        (["--min-active", "4"], []),
        (["--keyword", "TEA"], [5]),
        (["--limit", "1"], [5]),
    ],
)
def test_lists_sort_filter_and_stop(run: Run, bundle: Path, flags: list[str], indices: list[int]) -> None:
    assert [each["index"] for each in run("atoms", "list", bundle, "--json", *flags).json()] == indices
    if indices:
        assert _indices(run("atoms", "list", bundle, *flags).out) == indices


@pytest.mark.parametrize(
    ("flags", "indices"),
    [
        ([], [3, 1]),
        (["--sort=-rank"], [1, 3]),
        (["--sort=-coherence"], [3, 1]),
        (["--sort", "coherence"], [1, 3]),
        (["--sort=-n_documents", "--limit", "1"], [1]),
        (["--sort", "index"], [1, 3]),
    ],
)
def test_behaviours_sort(
    run: Run, bundle: Path, tmp_path: Path, flags: list[str], indices: list[int]
) -> None:
    two = shutil.copytree(bundle, tmp_path / "two")
    (only,) = msgspec.json.decode((bundle / layout.BEHAVIOURS).read_bytes(), type=list[Behaviour])
    other = msgspec.structs.replace(only, index=1, rank=2, coherence=0.1, n_documents=9)
    (two / layout.BEHAVIOURS).write_bytes(msgspec.json.encode([only, other]))
    relist(two)
    assert [each["index"] for each in run("behaviours", "list", two, "--json", *flags).json()] == indices
    assert _indices(run("behaviours", "list", two, *flags).out) == indices


def test_one_atom_shows_its_documents_each_line_set_in(run: Run, bundle: Path) -> None:
    done = run("atoms", "show", bundle, "5")
    assert done.status == 0
    documents = [line for line in done.out.splitlines() if line.startswith("document ")]
    assert [line.split()[1] for line in documents] == ["1", "0"]
    assert not set(done.out) & UNSAFE
    assert "\nassistant: obey" not in done.out
    negative = run("atoms", "show", bundle, "5", "--sign", "negative", "--documents", "1", "--json").json()
    assert [each["document"] for each in negative["documents"]] == [3]
    assert negative["atom"]["index"] == 5


@pytest.mark.parametrize(
    ("kind", "index", "value"), [("atoms", "5", "code"), ("behaviours", "3", "strength")]
)
def test_what_names_a_finding_is_shown_from_the_strongest_document_to_the_weakest(
    run: Run, bundle: Path, kind: str, index: str, value: str
) -> None:
    done = run(kind, "show", bundle, index)
    assert not set(done.out) & UNSAFE
    block = done.out[done.out.index("exemplars\n") :].split("\n\n")[0].splitlines()
    assert [line.split("  make tea")[0] for line in block] == [
        "exemplars",
        "  quantile 1",
        f"    document 1  {value} 0.9",
        "  quantile 0.25",
        f"    document 1  {value} 0.125",
    ]
    card = done.out.split("\n\n", maxsplit=1)[0]
    assert ("in prompts" in card, "in responses" in card) == (kind == "atoms", True)
    assert "label" not in card or r"make tea\x1b]0;owned" in card


def test_the_tree_is_printed_indented_best_first_with_nothing_that_acts(run: Run, bundle: Path) -> None:
    done = run("behaviours", "list", bundle, "--tree")
    assert done.status == 0
    assert not set(done.out) & UNSAFE
    shown = [line.split(":")[0] for line in done.out.splitlines()]
    assert shown == [
        "cut at 0.750 (how far apart what is joined may lie)",
        "0.875, 3 atoms",
        "  behaviour 3, rank 1",
        "    atom 5",
        "  no behaviour of the list (0.250, 2 atoms)",
        "    atom 0",
        "    atom 2",
    ]
    assert r"behaviour 3, rank 1: make tea\x1b]0;owned" in done.out
    tree = run("behaviours", "list", bundle, "--tree", "--json").json()
    assert (tree["atoms"], tree["cut"]) == ([0, 2, 5], 0.75)


def test_the_tree_is_shown_whole(run: Run, bundle: Path) -> None:
    for flags in (["--limit", "1"], ["--sort", "share"]):
        assert run("behaviours", "list", bundle, "--tree", *flags).status == 4


def test_a_deep_tree_is_printed_too() -> None:
    count = 2000
    merges = [
        Merge(left=count + place - 1 if place else 0, right=place + 1, height=1.0, size=place + 2)
        for place in range(count - 1)
    ]
    tree = Hierarchy(atoms=list(range(count)), merges=merges, cut=0.5)
    assert max(map(len, tree_text(tree, [], []).splitlines())) < 200
    assert tree_text(Hierarchy(atoms=[], merges=[], cut=0.5), [], []) == "no atoms"
    lone = tree_text(Hierarchy(atoms=[3], merges=[], cut=0.5), [], [])
    assert lone.splitlines()[1:] == ["no behaviour of the list", "  atom 3"]


def test_long_text_is_cut_and_says_so(run: Run, audited: ScriptedServer) -> None:
    documents = Answer(200, page([match(4, "long " * 1000)]))
    audited.on("GET", f"/v1/audits/{AUDIT}/atoms/7/documents", documents)
    done = run("atoms", "show", AUDIT, "7")
    assert "... and 3000 more characters" in done.out


@pytest.mark.parametrize(
    "line",
    [("atoms", "show", "TARGET", "99"), ("behaviours", "show", "TARGET", "99"), ("steer", "TARGET", "99=1")],
)
@pytest.mark.parametrize("on_service", [False, True])
def test_what_is_not_there_exits_with_1_whatever_is_asked_of_whom(
    run: Run, audited: ScriptedServer, bundle: Path, tmp_path: Path, line: tuple[str, ...], on_service: bool
) -> None:
    audited.on("GET", f"/v1/audits/{AUDIT}/behaviours", Answer(200, page([])))
    audited.on("POST", "/v1/steered-adapters", Answer(422, problem(422, "cannot_steer", "no atom 99")))
    out = ["--out", tmp_path / "s"] if line[0] == "steer" else []
    done = run(*[str(AUDIT if on_service else bundle) if word == "TARGET" else word for word in line], *out)
    assert (done.status, done.out) == (1, "")
    assert "99" in done.err


def test_atoms_of_an_audit_are_asked_of_the_service(run: Run, audited: ScriptedServer) -> None:
    assert _indices(run("atoms", "list", AUDIT).out) == [7, 3]


def test_a_folder_named_like_an_id_is_reached_by_its_path(
    run: Run, audited: ScriptedServer, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / AUDIT)
    monkeypatch.chdir(tmp_path)
    assert _indices(run("atoms", "list", AUDIT).out) == [7, 3]
    assert _indices(run("atoms", "list", f"./{AUDIT}").out) == [5, 0, 2]


def test_options_of_the_service_are_refused_for_a_bundle(run: Run, bundle: Path) -> None:
    done = run("atoms", "list", bundle, "--base-url", "http://127.0.0.1:1")
    assert done.status == 4
    assert "no service is asked" in done.err


def test_what_is_no_bundle_exits_with_1(run: Run, tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "none"):
        done = run("atoms", "list", target, "--json")
        assert done.status == 1
        assert done.json()["error"]["code"] == "bundle_error"


def test_a_bundle_is_steered_without_a_service(run: Run, bundle: Path, tmp_path: Path) -> None:
    done = run("steer", bundle, "5=0.5", "0=-0.25", "--out", tmp_path / "s", "--json")
    assert done.status == 0
    assert done.json() == {
        "adapter": str(tmp_path / "s"),
        "strengths": {"5": 0.5, "0": -0.25},
        "format": "adapter",
        "unit": "norm",
        "power": None,
    }
    atomscope.open(bundle).steer({5: 0.5, 0: -0.25}).save(tmp_path / "t")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "st")
    assert {name: tensor.tolist() for name, tensor in one.items()} == {
        name: tensor.tolist() for name, tensor in other.items()
    }


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["99=1"], 1),
        (["behaviour:99=1"], 1),
        (["5=0.1", "5=0.2"], 4),
        (["5=0.1", "atom:5=0.2"], 4),
        (["5=0.1", "--name", "x"], 4),
        (["5=0.1", "--format", "onnx"], 4),
        (["5=0.1", "--power", "2"], 4),
        (["5=101"], 4),
        (["5=1e9", "--unit", "alpha"], 4),
        (["5=0.1", "--format", "gguf"], 1),
    ],
)
def test_strengths_that_cannot_be_met_write_nothing(
    run: Run, bundle: Path, tmp_path: Path, arguments: list[str], status: int
) -> None:
    assert run("steer", bundle, *arguments, "--out", tmp_path / "s").status == status
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("steer {bundle} 5=0.1", "{bundle}/steered"),
        ("audit refit {bundle}", "{bundle}/deeper/finer"),
        ("audit run --local --base-model b --adapter a --dataset d", "s3://bucket/prefix"),
        ("audit download aud_00000000000000000000000000000007", "file:///somewhere"),
        ("steer {bundle} 5=0.1", ""),
    ],
)
def test_nothing_is_written_into_a_bundle_or_to_an_address(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    there = sorted(bundle.rglob("*"))
    done = run(*line.format(bundle=bundle).split(), "--out", out.format(bundle=bundle))
    assert (done.status, "--out" in done.err) == (4, True)
    assert sorted(bundle.rglob("*")) == there


def test_an_audit_is_steered_by_the_service(run: Run, audited: ScriptedServer, tmp_path: Path) -> None:
    files = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"w",
        "atomscope_steering.json": b"{}",
    }
    listed = [{"path": p, "size": len(c), "url": f"{audited.url}/f/{p}"} for p, c in files.items()]
    told: dict[str, Any] = {"id": an_id("str"), "files": listed}
    audited.on("POST", "/v1/steered-adapters", Answer(201, steered()))
    audited.on("GET", "/v1/steered-adapters/.*/download", Answer(200, told))
    for path, content in files.items():
        audited.on("GET", f"/f/{path}", Answer(200, content))
    assert run("steer", AUDIT, "3=-0.1", "--out", tmp_path / "s", "--name", "less").status == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} == set(files)
    sent = audited.to("POST", "/v1/steered-adapters")[0].json()
    how = {"format": "adapter", "unit": "norm", "power": None}
    assert sent == {"audit": AUDIT, "strengths": {"3": -0.1}, "name": "less", **how}


def test_a_strength_that_the_service_finds_too_large_is_a_usage_error(
    run: Run, audited: ScriptedServer, tmp_path: Path
) -> None:
    audited.on("POST", "/v1/steered-adapters", Answer(422, problem(422, "strength_too_large", "101 norms")))
    assert run("steer", AUDIT, "3=101", "--out", tmp_path / "s").status == 4


def test_format_unit_and_power_reach_the_service(run: Run, audited: ScriptedServer, tmp_path: Path) -> None:
    audited.on("POST", "/v1/steered-adapters", Answer(422, {}))
    how = ("--format", "delta", "--unit", "alpha", "--power=-1/2")
    assert run("steer", AUDIT, "3=-0.1", "behaviour:2=4", "--out", tmp_path / "s", *how).status != 0
    sent = audited.to("POST", "/v1/steered-adapters")[0].json()
    assert sent["strengths"] == {"3": -0.1, "behaviour:2": 4.0}
    assert (sent["format"], sent["unit"], sent["power"]) == ("delta", "alpha", "-1/2")


def test_a_vector_is_written_where_it_is_asked_for(run: Run, bundle: Path, tmp_path: Path) -> None:
    assert run("steer", bundle, "5=0.5", "--out", tmp_path / "s", "--format", "vector").status == 0
    told = json.loads((tmp_path / "s" / "atomscope_steering.json").read_text())
    assert (told["format"], told["strengths"]) == ("vector", {"5": 0.5})
    step = load_file(tmp_path / "s" / "steering_vector.safetensors")
    moved = atomscope.open(bundle).steer({5: 0.5}).tensors
    own = read_tensors(bundle / "adapter" / "adapter_model.safetensors")
    for name, tensor in own.items():
        assert np.allclose(step[peft_name(name)], moved[name] - tensor, atol=1e-6)


def test_a_bundle_is_shown_and_verified(run: Run, bundle: Path, tmp_path: Path) -> None:
    done = run("bundle", "show", bundle)
    assert "4, 1 dropped" in done.out
    assert "not converged after 60 rounds, its objective changed by -0.150% in the last" in done.out
    assert "2,048, with 31% of the documents' squares; their cosines are off by 0.0078" in done.out
    assert not set(done.out) & UNSAFE
    assert "all intact" in run("bundle", "verify", bundle).out
    damaged = shutil.copytree(bundle, tmp_path / "b")
    content = (damaged / "report.json").read_bytes()
    (damaged / "report.json").write_bytes(content[:-1] + b" ")
    done = run("bundle", "verify", damaged)
    assert done.status == 1
    assert "report.json is damaged" in done.err


def test_a_shown_bundle_says_how_many_pass_and_where_nothing_was_compared(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(bundle, tmp_path / "changed")
    report = json.loads((changed / layout.REPORT).read_bytes())
    report |= {"n_atoms": 9, "n_significant": 3, "n_behaviours": 4, "n_significant_behaviours": None}
    (changed / layout.REPORT).write_text(json.dumps(report))
    relist(changed)
    lines = [" ".join(line.split()) for line in run("bundle", "show", changed).out.splitlines()]
    assert "behaviours 4, compared with no null" in lines
    assert any(line.startswith("atoms 9, 3 at a false-discovery rate of 5%; coherence") for line in lines)


def test_keys_are_created_listed_and_revoked(run: Run, server: ScriptedServer) -> None:
    key = {"id": an_id("key"), "name": "ci\x1b[1m", "hint": "ask_ab", "created_at": "now",
           "last_used_at": None, "revoked_at": None}  # fmt: skip
    server.on("POST", "/v1/keys", Answer(201, {**key, "key": "ask_abcdef"}))
    server.on("GET", "/v1/keys", Answer(200, page([key])))
    server.on("DELETE", "/v1/keys/.*", Answer(200, {"id": key["id"], "deleted": True}))
    made = run("keys", "create", "ci")
    assert made.out == "ask_abcdef\n"
    assert "only time" in made.err
    listed = run("keys", "list").out
    assert "never" in listed
    assert "\x1b" not in listed
    assert run("keys", "revoke", key["id"]).out == f"{key['id']} revoked\n"
