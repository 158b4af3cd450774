"""The GPUs of this machine, of which each pipeline worker gets one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

_SECONDS = 30.0


def visible_gpus(outer: Mapping[str, str]) -> list[str]:
    """Their names, as `CUDA_VISIBLE_DEVICES` takes them; none where no driver tells of any.

    Those that the variable lists already, up to the first that is none, as CUDA reads it; where it is not
    set, those that `nvidia-smi` lists. A worker asks CUDA itself.
    """
    told = outer.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        names = [name.strip() for name in told.split(",")]
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    program = shutil.which("nvidia-smi", path=outer.get("PATH"))
    if program is None:
        return []
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return []
    if done.returncode != 0:
        return []
    return [name for line in done.stdout.splitlines() if (name := line.strip()).startswith("GPU-")]
