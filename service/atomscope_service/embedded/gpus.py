"""The GPUs of this machine, of which each pipeline worker gets one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

_SECONDS = 30.0


def visible_gpus(outer: Mapping[str, str], note: Callable[[str], None]) -> list[str]:
    """Their names, as `CUDA_VISIBLE_DEVICES` takes them; none where no driver tells of any.

    Those that the variable lists already, up to the first that is none, as CUDA reads it; where it is not
    set, those that `nvidia-smi` lists. Where that fails, `note` is told: every worker then takes what CUDA
    gives it first, or the CPU.
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
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        note(f"GPUs could not be listed ({error}): name each worker's in CUDA_VISIBLE_DEVICES")
        return []
    lines = done.stdout.decode(errors="replace").splitlines()
    return [name for line in lines if (name := line.strip()).startswith("GPU-")]
