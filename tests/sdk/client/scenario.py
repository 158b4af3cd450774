"""One scenario, either client."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atomscope import AsyncClient, Client
from atomscope.client._retry import RetryPolicy

KEY = "ask_secret"
QUICK = RetryPolicy(first=0.01, longest=0.02)


@dataclass(frozen=True)
class Ask:
    """Calls `scenario(client)`; on the asynchronous client what it returns is awaited."""

    url: str
    blocking: bool

    def __call__(self, scenario: Callable[[Any], Any], *, quick: bool = True, **options: Any) -> Any:
        options = {"base_url": self.url, "api_key": KEY, **options}
        if self.blocking:
            with Client(**options) as client:
                if quick:
                    client._service.policy = QUICK
                return _finished(scenario(client))
        return asyncio.run(self._awaited(scenario, quick, options))

    async def _awaited(self, scenario: Callable[[Any], Any], quick: bool, options: dict[str, Any]) -> Any:
        async with AsyncClient(**options) as client:
            if quick:
                client._service.policy = QUICK
            result = scenario(client)
            while inspect.isawaitable(result):
                result = await result
            if hasattr(result, "__aiter__"):
                return [item async for item in result]
            return result

    def steps(self, *steps: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A scenario of several calls, each given what the one before it returned."""
        if self.blocking:

            def run(value: Any) -> Any:
                for step in steps:
                    value = step(value)
                return value

            return run

        async def run_awaiting(value: Any) -> Any:
            for step in steps:
                value = step(value)
                if inspect.isawaitable(value):
                    value = await value
            return value

        return run_awaiting


def _finished(result: Any) -> Any:
    return list(result) if hasattr(result, "__next__") else result
