"""Where the servers of a fleet are: in a list, under a name with many addresses, in a registry."""

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from loguru import logger

from pipecat_duplex.remote.backend import normal_url
from pipecat_duplex.session import DuplexError, one_line

REGISTRY_PATH = "/workers"
"""The path of a registry: an HTTP address that lists servers."""

LOOKUP_SECS = 5.0
"""How long a first lookup may take."""

REFRESH_SECS = 0.25
"""How long a caller waits for a fresh answer where the last one is known."""

AGAIN_SECS = 1.0
"""A lookup is not repeated within this time."""

MAX_REGISTRY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is.

    Parameters:
        url: Its WebSocket address.
        ip: The address to connect to, where the name in the URL has several.
    """

    url: str
    ip: str | None = None


class ServerSource:
    """Looks servers up again and again, and keeps the last answer.

    While a registry or a name server is away, the servers that it named last stay known.
    """

    def __init__(self, url: str, find: Callable[[], Awaitable[list[ServerAddress]]]):
        """Initialize; nothing is looked up yet.

        Args:
            url: What is looked up, for logs and errors.
            find: Looks it up, once.
        """
        self._place = urlsplit(url).netloc.rpartition("@")[2]
        self._find = find
        self._known: list[ServerAddress] = []
        self._looking: asyncio.Task[None] | None = None
        self._again_at_secs = 0.0
        self.problem = ""

    async def servers(self) -> list[ServerAddress]:
        """Return the servers: of now if that is known soon, else of the last time."""
        if self._looking is None and time.monotonic() >= self._again_at_secs:
            self._looking = asyncio.create_task(self._look(), name=f"look-up-{self._place}")
        if self._looking is not None:
            patience_secs = REFRESH_SECS if self._known else LOOKUP_SECS
            await asyncio.wait({self._looking}, timeout=patience_secs)
        return self._known

    def close(self) -> None:
        """Give up a lookup that is under way."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOKUP_SECS):
                found = await self._find()
            problem = "" if found else f"{self._place} names no server"
        # Whatever a resolver, a proxy or a foreign answer raises: the last answer stays.
        except Exception as error:
            found, reason = [], one_line(error)
            problem = f"{self._place} cannot be looked up: {reason}"
        finally:
            self._looking = None
            self._again_at_secs = time.monotonic() + AGAIN_SECS
        if problem and not self.problem and self._known:
            logger.warning(f"{problem}; its last {len(self._known)} servers are used")
        self.problem = problem
        self._known = found or self._known


def is_one_server(url: str) -> bool:
    """Whether an address can only mean one server: an IP address, or this machine.

    Args:
        url: The address.
    """
    return not _is_registry(url) and _is_fixed(urlsplit(normal_url(url)).hostname or "")


def make_source(url: str) -> ServerSource:
    """Return where the servers behind an address are looked up.

    Args:
        url: A server's address, a name with many addresses, or a registry's ``http://…/workers``.

    Raises:
        DuplexError: The address cannot be used.
    """
    if not isinstance(url, str):
        raise DuplexError(f"a server's address is text such as 'ws://host:8998', not {url!r}")
    if _is_registry(url):
        return ServerSource(url, lambda: _ask_registry(url))
    server = normal_url(url)
    if _is_fixed(urlsplit(server).hostname or ""):
        return ServerSource(server, lambda: _fixed(server))
    return ServerSource(server, lambda: _look_up_name(server))


def read_workers(body: bytes) -> list[ServerAddress]:
    """Read a registry's answer; entries that make no sense, or drain, are left out.

    Args:
        body: ``{"workers": [{"url": "ws://10.0.0.1:8998/api/chat", "draining": false}, …]}``.

    Raises:
        DuplexError: It is something else.
    """
    try:
        workers = json.loads(body)["workers"]
        entries = [entry for entry in workers if isinstance(entry, dict)]
    except (ValueError, RecursionError, KeyError, TypeError) as e:
        raise DuplexError("the answer is no list of workers") from e
    found: dict[str, ServerAddress] = {}
    for entry in entries:
        try:
            url = normal_url(str(entry.get("url", "")))
        except DuplexError as problem:
            logger.debug(f"an entry of the registry is left out: {problem}")
            continue
        if entry.get("draining") is not True:
            found[url] = ServerAddress(url)
    return list(found.values())


def _is_registry(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # normal_url says what is wrong with it.
    return parts.scheme in ("http", "https") and parts.path.rstrip("/").endswith(REGISTRY_PATH)


def _is_fixed(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return True


async def _fixed(url: str) -> list[ServerAddress]:
    return [ServerAddress(url)]


async def _ask_registry(url: str) -> list[ServerAddress]:
    import aiohttp  # Pipecat brings it.

    async with aiohttp.ClientSession(trust_env=True) as http, http.get(url) as response:
        if response.status != 200:
            raise DuplexError(f"HTTP {response.status}")
        body = await response.content.read(MAX_REGISTRY_BYTES)
    return read_workers(body)


async def _look_up_name(url: str) -> list[ServerAddress]:
    """Return a server for each address of a name, or the name itself where that tells nothing."""
    if _goes_through_proxy(url):
        return [ServerAddress(url)]  # The proxy looks names up.
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(
        parts.hostname, port, type=socket.SOCK_STREAM
    )
    ips = _one_family([(family, str(address[0])) for family, _, _, _, address in found])
    return [ServerAddress(url, ip) for ip in ips] if len(ips) > 1 else [ServerAddress(url)]


def _one_family(found: Sequence[tuple[int, str]]) -> list[str]:
    """Return the addresses of one family: a machine that has both is no two machines."""
    first = found[0][0] if found else None
    return list(dict.fromkeys(ip for family, ip in found if family == first))


def _goes_through_proxy(url: str) -> bool:
    try:
        from websockets.proxy import get_proxy
        from websockets.uri import parse_uri
    except ImportError:  # websockets before 15 knows no proxies.
        return False
    return get_proxy(parse_uri(url)) is not None
