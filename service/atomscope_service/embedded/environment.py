"""What each process of the stack is told: the API everything, a pipeline worker no secret."""

from __future__ import annotations

from collections.abc import Mapping

from atomscope_service.embedded.data_dir import DataDir

_SERVICE_ONLY = frozenset(
    {
        "ATOMSCOPE_DATABASE_URL",
        "ATOMSCOPE_SECRET_FILE",
        "ATOMSCOPE_API_KEY",
        "ATOMSCOPE_API_KEY_FILE",
        "ATOMSCOPE_BASE_URL",
    }
)
"""Never given to a pipeline worker: it loads weights and templates that nobody vouches for."""


def service_environment(
    data_dir: DataDir, outer: Mapping[str, str], address: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment of the API and the control worker; settings of the outer environment go before ours."""
    ours = {
        "ATOMSCOPE_DATABASE_URL": data_dir.database_url,
        "ATOMSCOPE_STORE": data_dir.store_uri,
        "ATOMSCOPE_SECRET_FILE": str(data_dir.secret_file),
    }
    fixed = {"ATOMSCOPE_BROKER_URL": data_dir.broker_url, "OMP_NUM_THREADS": "1", **(address or {})}
    return ours | dict(outer) | fixed


def worker_environment(data_dir: DataDir, outer: Mapping[str, str], threads: int) -> dict[str, str]:
    """Environment of a pipeline worker with its share of the machine's threads."""
    kept = {name: value for name, value in outer.items() if name not in _SERVICE_ONLY}
    fixed = {
        "ATOMSCOPE_BROKER_URL": data_dir.broker_url,
        "ATOMSCOPE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    return {"ATOMSCOPE_STORE": data_dir.store_uri} | kept | fixed
