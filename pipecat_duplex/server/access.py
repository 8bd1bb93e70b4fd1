"""Who may call: keys and origins."""

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

KEY_PARAMETERS = ("api_key", "worker_auth_id")
"""Query parameters that may hold the key; the second is the one that Kyutai's page can send."""

KEY_HEADER = "kyutai-api-key"


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
        hmac.compare_digest(candidate.encode(errors="replace"), key.encode())
        for candidate in shown
        for key in api_keys
        if candidate
    ]
    return any(matches)


def is_allowed_origin(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a web page may call.

    Args:
        origin: The ``Origin`` header; browsers send it, others need not.
        host: The ``Host`` header: pages of the server itself may call.
        allowed: Other origins that may, or ``*``.
    """
    if origin is None or "*" in allowed:
        return True
    normal = origin.lower().rstrip("/")
    if normal in {entry.lower().rstrip("/") for entry in allowed}:
        return True
    try:
        return bool(host) and urlsplit(normal).netloc == host.lower()
    except ValueError:
        return False
