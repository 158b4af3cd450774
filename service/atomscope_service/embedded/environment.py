"""What each process of the stack is told: the API everything, a pipeline worker no secret."""

from __future__ import annotations

from collections.abc import Mapping

from atomscope_service.embedded.data_dir import DataDir

_WORKER_NAMES = frozenset(
    {
        "HOME",
        "USER",
        "LOGNAME",
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "HF_HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "ATOMSCOPE_STORE",
        "ATOMSCOPE_CACHE",
        "ATOMSCOPE_MAX_ROWS",
        "ATOMSCOPE_STALL_SECONDS",
    }
)
_WORKER_PREFIXES = (
    "LC_",
    "PYTHON",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "TORCH",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "AWS_",
    "ATOMSCOPE_S3_",
    "ATOMSCOPE_LABEL_",
)
"""All that a pipeline worker is given of the outer environment: it loads weights and templates that
nobody vouches for, so whatever is not known to be needed is kept from it. It does need the store, and, where
the operator named one, the endpoint for labels with its key."""


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


def worker_environment(
    data_dir: DataDir, outer: Mapping[str, str], threads: int, gpu: str | None = None
) -> dict[str, str]:
    """Environment of a pipeline worker with its share of the machine's threads, and its GPU."""
    kept = {
        name: value
        for name, value in outer.items()
        if name in _WORKER_NAMES or name.startswith(_WORKER_PREFIXES)
    }
    fixed = {
        "ATOMSCOPE_BROKER_URL": data_dir.broker_url,
        "ATOMSCOPE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    if gpu is not None:
        fixed["CUDA_VISIBLE_DEVICES"] = gpu
    return {"ATOMSCOPE_STORE": data_dir.store_uri} | kept | fixed
