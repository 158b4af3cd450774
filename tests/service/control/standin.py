"""A real pipeline worker whose stages stand in for the pipeline's: run as a program.

Extraction takes `STANDIN_SECONDS` a shard, in many checkpoints, or in none where `STANDIN_STANDS` is set;
every stage leaves one file.
"""

from __future__ import annotations

import os
import sys
import time

from atomscope.types.work import STAGES
from atomscope_workers.stages.context import StageContext, UnitResult
from atomscope_workers.worker import run

SHARDS = 3


def stage(ctx: StageContext) -> UnitResult:
    if ctx.stage == "extract":
        end = time.monotonic() + float(os.environ["STANDIN_SECONDS"])
        while time.monotonic() < end:
            if "STANDIN_STANDS" not in os.environ:
                ctx.checkpoint()
            time.sleep(0.05)
        ctx.progress(10, 10, "documents")
    ctx.write_bytes(f"{ctx.stage}/{ctx.index:04d}.json", str(os.getpid()).encode())
    if ctx.stage == "validate":
        return UnitResult(shards=SHARDS, documents=10 * SHARDS)
    return UnitResult(summary={"n_atoms": 1} if ctx.stage == "report" else {})


if __name__ == "__main__":
    sys.exit(run(dict.fromkeys(STAGES, stage)))
