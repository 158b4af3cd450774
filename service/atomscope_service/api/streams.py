"""Objects of the store as streams, read in threads, a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import anyio.to_thread

from atomscope.store import ObjectStore

CHUNK = 1 << 18


async def stream_object(store: ObjectStore, key: str, start: int, length: int) -> AsyncGenerator[bytes]:
    """`length` bytes of an object from `start`; the source is closed when the client leaves, too."""
    source = await anyio.to_thread.run_sync(store.open_read, key)
    try:
        if start:
            await anyio.to_thread.run_sync(source.seek, start)
        left = length
        while left > 0:
            chunk = await anyio.to_thread.run_sync(source.read, min(CHUNK, left))
            if not chunk:
                return  # shorter than announced: the client sees the connection end early
            left -= len(chunk)
            yield chunk
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(source.close)
