"""Seeds that depend on several things at once."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """Return a seed that depends on all parts and differs for neighbouring ones (torch's generators accept 64 bits)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")
