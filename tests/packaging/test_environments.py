"""The built wheel in environments that hold one extra each, made by the Dockerfile's own commands."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from atomscope.cli.registry import LocalRun
from atomscope.types.spec import AuditConfig
from atomscope_workers.local import run_local
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory
from tests.fixtures.scripts import load_script
from tests.packaging.dockerfile import ROOT, parse, play

STAGES = parse(ROOT / "Dockerfile")


def python(environment: Path, program: str, *arguments: object) -> str:
    """What `program` prints under the environment's own interpreter, nothing of this one on its path."""
    done = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip_check(environment: Path) -> str:
    done = subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def wheel(roots: Path) -> Path:
    """The wheel, built once, as the Dockerfile builds it."""
    (built,) = (play(STAGES, "wheel", roots) / "wheels").glob("*.whl")
    return built


@pytest.fixture
def bundle(tmp_path: Path, tiny_llama: Path, tiny_adapter: TinyAdapterFactory) -> Path:
    """A real bundle of 24 documents."""
    config = AuditConfig(
        dtype="float32",
        components=4,
        n_atoms=8,
        alpha=0.05,
        min_active=2,
        top_documents=4,
        shard_documents=12,
        fits=1,
        surrogates=0,
    )
    request = LocalRun(
        base_model=tiny_llama,
        adapter=tiny_adapter(),
        dataset=write_corpus(tmp_path / "train.jsonl", documents=24),
        out=tmp_path / "bundle",
        config=config,
    )
    return run_local(request, lambda stage, progress: None)


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "atomscope",
        "atomscope_workers",
        "atomscope_service",
    }
    assert "atomscope/py.typed" in names
    assert "atomscope_service/db/migrations/env.py" in names
    assert any(name.startswith("atomscope_service/web/static/") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith("NOTE-FROM-THE-LEAD.md")]


def test_the_core_alone_opens_a_bundle_and_steers_it_without_torch(
    wheel: Path, bundle: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "core"
    subprocess.run(["python3", "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "-r", ROOT / "requirements" / "core.txt", wheel], check=True, capture_output=True)
    assert "No broken requirements" in pip_check(environment)
    program = """
import sys, importlib.util, atomscope
for absent in ("torch", "transformers", "litestar", "sqlalchemy", "celery", "boto3"):
    assert importlib.util.find_spec(absent) is None, absent
bundle = atomscope.open(sys.argv[1])
bundle.verify()
atom = bundle.atoms[0]
folder = bundle.steer({atom: 0.1}).save(sys.argv[2])
print(atom.index, len(atom.documents()), sorted(path.name for path in folder.iterdir()))
"""
    told = python(environment, program, bundle, tmp_path / "steered")
    assert "adapter_model.safetensors" in told
    command = environment / "bin" / "atomscope"
    listed = subprocess.run([command, "atoms", "list", bundle], capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    refused = subprocess.run([command, "up"], capture_output=True, text=True, check=False)
    assert refused.returncode == 4
    assert "pip install 'atomscope[service]'" in refused.stderr


def test_the_service_is_imported_with_what_its_lock_holds() -> None:
    """Every other distribution of this environment is hidden; to play the stage itself takes longer."""
    program = """
import re, sys, importlib.metadata
plain = lambda name: re.sub("[-_.]+", "-", name).lower()
locked = {plain(re.split("[=<>;\\[ ]", line)[0]) for line in open(sys.argv[1]) if line[0].isalnum()}
owners = {top: {*map(plain, names)} for top, names in importlib.metadata.packages_distributions().items()}
hidden = {top for top, names in owners.items() if not names & (locked | {"atomscope"})}
class Hide:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is not in the lock", name=name)
sys.meta_path.insert(0, Hide())
assert {"torch", "transformers", "peft", "sklearn", "pytest"} <= hidden
import atomscope_service.app, atomscope_service.control.worker, psycopg, boto3, uvicorn
print("imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT / "requirements" / "service.txt"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "imported", done.stderr


@pytest.mark.long
def test_the_service_stage_serves_and_holds_no_torch(roots: Path) -> None:
    environment = play(STAGES, "service-environment", roots) / "opt" / "venv"
    assert "No broken requirements" in pip_check(environment)
    program = """
import importlib.util
for absent in ("torch", "transformers", "peft", "sklearn"):
    assert importlib.util.find_spec(absent) is None, absent
import atomscope_service.app, atomscope_service.control.worker, psycopg, boto3
print("imported")
"""
    assert python(environment, program) == "imported"


@pytest.mark.long
def test_the_worker_stage_imports_the_pipeline_and_no_database_code(roots: Path) -> None:
    """Its lock is installed in full; torch, half a gigabyte, is lent by the environment of this test."""

    def without_torch(command: str) -> str:
        parts = [part for part in command.split(" && ") if "requirements/torch.txt" not in part]
        assert len(parts) < len(command.split(" && ")) or "/opt/venv" not in command
        return " && ".join(parts)

    environment = play(STAGES, "worker-environment", roots, without_torch) / "opt" / "venv"
    (packages,) = environment.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    for name in ("torch", "torchgen", "functorch", *(path.name for path in here.glob("torch-*.dist-info"))):
        if (here / name).exists():
            (packages / name).symlink_to(here / name)
    assert "No broken requirements" in pip_check(environment)
    program = """
import importlib.util
for absent in ("sqlalchemy", "alembic", "litestar", "psycopg"):
    assert importlib.util.find_spec(absent) is None, absent
import torch, atomscope_workers.worker, atomscope_workers.stages.registry
print(torch.__version__.split("+")[0])
"""
    pinned = (ROOT / "requirements" / "torch.txt").read_text().split("torch==")[1].strip()
    assert python(environment, program) == pinned


def test_the_dockerfile_has_no_lint() -> None:
    tool = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([tool, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["service", "worker"])
def test_images_are_not_root_checked_and_told_no_secret(target: str) -> None:
    base = dict(STAGES["base"].instructions)
    own = dict(STAGES[target].instructions)
    assert STAGES[target].base == "base"
    assert base["USER"] == "10001:10001"
    assert "USER" not in own
    assert base["ENTRYPOINT"] == '["atomscope"]'
    assert own["HEALTHCHECK"]
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            if word in ("ENV", "ARG"):
                assert not [name for name in ("SECRET", "PASSWORD", "KEY", "DATABASE_URL") if name in rest]


def test_every_base_image_is_pinned_to_a_patch_release() -> None:
    (image,) = (
        line.partition("=")[2]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("ARG PYTHON_IMAGE=")
    )
    tag = image.partition(":")[2]
    assert len(tag.split("-")[0].split(".")) == 3
    assert {stage.base for stage in STAGES.values()} <= {"${PYTHON_IMAGE}", *STAGES}


def test_the_locks_are_those_that_the_lock_script_writes() -> None:
    for name, content in load_script("scripts/lock.py").locks().items():
        assert (ROOT / "requirements" / name).read_text() == content, name
