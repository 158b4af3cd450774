"""The service from Python: `Client` blocks, `AsyncClient` awaits."""

from atomscope.client._async import (
    AsyncAudit,
    AsyncClient,
    AsyncListing,
    AsyncRemoteAtom,
    AsyncSteeredAdapter,
)
from atomscope.client._sync import Audit, Client, Listing, RemoteAtom, SteeredAdapter

__all__ = [
    "AsyncAudit",
    "AsyncClient",
    "AsyncListing",
    "AsyncRemoteAtom",
    "AsyncSteeredAdapter",
    "Audit",
    "Client",
    "Listing",
    "RemoteAtom",
    "SteeredAdapter",
]
