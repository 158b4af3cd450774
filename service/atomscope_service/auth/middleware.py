"""Who may call: every route needs an API key unless its handler says `opt={"public": True}`."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from atomscope_service.api.problems import ProblemError
from atomscope_service.auth.keys import Caller, authenticate
from atomscope_service.auth.secret import Secret
from atomscope_service.db.engine import Database

PUBLIC = "public"


def _refusal(detail: str) -> ProblemError:
    return ProblemError(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})


class Authentication(ASGIMiddleware):
    """Puts the `Caller` of the bearer key into `scope["auth"]`; answers 401 where there is none."""

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET, ScopeType.ASGI)
    exclude_opt_key = PUBLIC

    def __init__(self, database: Database, secret: Secret) -> None:
        self._database = database
        self._secret = secret

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Authenticate, or refuse the request."""
        header = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), None)
        if header is None:
            raise _refusal("Give an API key: `Authorization: Bearer ask_...`.")
        scheme, _, key = header.decode("latin-1").partition(" ")
        caller = None
        if scheme.lower() == "bearer":
            caller = await anyio.to_thread.run_sync(authenticate, self._database, self._secret, key.strip())
        if caller is None:
            raise _refusal("This API key is not valid.")
        scope["auth"] = caller
        await next_app(scope, receive, send)


def require_caller(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of the whole application: denies what the middleware did not authenticate."""
    if not handler.opt.get(PUBLIC) and not isinstance(connection.scope.get("auth"), Caller):
        raise _refusal("Give an API key: `Authorization: Bearer ask_...`.")
