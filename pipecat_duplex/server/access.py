"""Who may call: keys, origins, and the names that a server answers to."""

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

KEY_PARAMETERS = ("api_key", "worker_auth_id")
"""Query parameters that may hold the key; the second is the Rust backend's."""

KEY_HEADER = "kyutai-api-key"

ANY = "*"


def has_key(
    headers: Mapping[str, str], query: Mapping[str, str], api_keys: tuple[str, ...]
) -> bool:
    """Whether a caller shows one of the keys, or none is asked for.

    Args:
        headers: Headers of the request, case-insensitive.
        query: Its query parameters.
        api_keys: The keys.
    """
    if not api_keys:
        return True
    shown = [query.get(name, "") for name in KEY_PARAMETERS]
    shown.append(headers.get(KEY_HEADER, ""))
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(token.strip())
    # Compared in full and in constant time, so that the time tells nothing about the keys.
    matches = [
        hmac.compare_digest(candidate.encode(errors="replace"), key.encode(errors="replace"))
        for candidate in shown
        for key in api_keys
        if candidate
    ]
    return any(matches)


def is_allowed_origin(origin: str | None, host: str, allowed: Iterable[str]) -> bool:
    """Whether a web page may call.

    Args:
        origin: The ``Origin`` header; browsers send it, others need not.
        host: The ``Host`` header: pages of the server itself may call.
        allowed: Other origins that may, or ``*``.
    """
    allowed = tuple(allowed)
    if origin is None or ANY in allowed:
        return True
    normal = origin.lower().rstrip("/")
    if normal in {entry.lower().rstrip("/") for entry in allowed}:
        return True
    try:
        return bool(host) and urlsplit(normal).netloc == host.lower()
    except ValueError:
        return False


def is_local_host(host: str | None, allowed: Iterable[str] = ()) -> bool:
    """Whether a request to a server on loopback names the server by a name of this machine.

    A page of another site can let its own name point to 127.0.0.1: then its requests are of the
    same origin, and only the name tells that it is a stranger.

    Args:
        host: The ``Host`` header; browsers always send it.
        allowed: Origins that may call, whose names a proxy may pass on.
    """
    allowed = tuple(allowed)
    if host is None or ANY in allowed:
        return True
    name = host_name(host)
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if name in {host_name(entry.partition("://")[2] or entry) for entry in allowed}:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str | None:
    """Return the name in a ``Host`` header in lower case, without port, brackets and last dot."""
    try:
        parts = urlsplit(f"//{host.strip()}")
        parts.port  # noqa: B018  raises where there is none
        name = parts.hostname
    except ValueError:
        return None
    if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return name.removesuffix(".")
