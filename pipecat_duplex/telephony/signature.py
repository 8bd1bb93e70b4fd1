"""Whether a request comes from Twilio: it signs each with the account's auth token."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}


def is_signed(
    signature: str | None, *, auth_token: str, url: str, form: Mapping[str, str] | None = None
) -> bool:
    """Check the header ``X-Twilio-Signature``.

    Twilio signs the URL as it called it, followed by the fields of the form sorted by name: behind
    a proxy that is the public URL. A WebSocket's has the scheme ``wss`` and no form. Whether the
    signed URL names the scheme's own port is not fixed, so both are tried.

    Args:
        signature: The header's value, if there is one.
        auth_token: The account's auth token.
        url: The public URL that was called, with its query.
        form: The fields of a POST.

    Returns:
        Whether the signature is right.
    """
    if not signature:
        return False
    fields = "".join(name + value for name, value in sorted((form or {}).items()))
    # Every candidate is compared, and in constant time: how long it takes tells nothing.
    matches = [
        hmac.compare_digest(_sign(auth_token, candidate + fields), signature.encode())
        for candidate in _spellings(url)
    ]
    return any(matches)


def _sign(auth_token: str, text: str) -> bytes:
    return base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest())


def _spellings(url: str) -> list[str]:
    """Return the URL with and without its scheme's own port."""
    parts = urlsplit(url)
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None or parts.port not in (None, port):
        return [url]
    host = parts.netloc.removesuffix(f":{port}")
    return [parts._replace(netloc=netloc).geturl() for netloc in (host, f"{host}:{port}")]
