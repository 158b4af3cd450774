"""Open audit bundles, kept for the next request: a committed bundle never changes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from atomscope.bundle import Bundle
from atomscope.store import ObjectStore

KEPT = 8
"""Bundles that are kept open, the ones used last."""


class BundleCache:
    """Bundles by their key prefix, which holds the project's and the audit's id; safe among threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._bundles: OrderedDict[str, Bundle] = OrderedDict()

    def open(self, prefix: str) -> Bundle:
        """The bundle under `prefix`; raises `BundleError` when it is missing or damaged."""
        with self._lock:
            bundle = self._bundles.get(prefix)
            if bundle is not None:
                self._bundles.move_to_end(prefix)
                return bundle
        bundle = Bundle(self._store, prefix)  # outside of the lock: it reads from the store
        with self._lock:
            bundle = self._bundles.setdefault(prefix, bundle)
            while len(self._bundles) > KEPT:
                self._bundles.popitem(last=False)
        return bundle

    def forget(self, prefix: str) -> None:
        """Drop every bundle whose prefix begins with this one: its audit was deleted."""
        with self._lock:
            for key in [key for key in self._bundles if key.startswith(prefix)]:
                del self._bundles[key]
