"""The service from Python: `Client` blocks, `AsyncClient` awaits."""

from atomscope.client._async import AsyncClient, AsyncListing
from atomscope.client._async_handles import AsyncAudit, AsyncRemoteAtom, AsyncSteeredAdapter
from atomscope.client._sync import Client, Listing
from atomscope.client._sync_handles import Audit, RemoteAtom, SteeredAdapter
from atomscope.client._wire import Reply

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
    "Reply",
    "SteeredAdapter",
]
