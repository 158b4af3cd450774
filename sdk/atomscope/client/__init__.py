"""The service from Python: `Client` blocks, `AsyncClient` awaits."""

from atomscope.client._async import AsyncClient, AsyncListing
from atomscope.client._async_handles import (
    AsyncAudit,
    AsyncRemoteAtom,
    AsyncRemoteBehaviour,
    AsyncSteeredAdapter,
)
from atomscope.client._sync import Client, Listing
from atomscope.client._sync_handles import Audit, RemoteAtom, RemoteBehaviour, SteeredAdapter
from atomscope.client._wire import Reply

__all__ = [
    "AsyncAudit",
    "AsyncClient",
    "AsyncListing",
    "AsyncRemoteAtom",
    "AsyncRemoteBehaviour",
    "AsyncSteeredAdapter",
    "Audit",
    "Client",
    "Listing",
    "RemoteAtom",
    "RemoteBehaviour",
    "Reply",
    "SteeredAdapter",
]
