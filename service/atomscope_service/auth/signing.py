"""Signatures of links and cursors: URL-safe text over unambiguous parts."""

from __future__ import annotations

import base64
import hashlib
import hmac


def sign(key: bytes, *parts: str) -> str:
    """HMAC-SHA-256 of the parts as 43 URL-safe characters; lengths count: `ab, c` is not `a, bc`."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def is_signed(key: bytes, signature: str, *parts: str) -> bool:
    """Whether `signature` is that of the parts, compared in constant time."""
    return hmac.compare_digest(sign(key, *parts).encode(), signature.encode())
