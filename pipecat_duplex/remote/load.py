"""How full servers are, asked of them just before a call."""

import asyncio
import json
import ssl
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit, urlunsplit

from loguru import logger

from pipecat_duplex.remote.discovery import ServerAddress
from pipecat_duplex.session import one_line

if TYPE_CHECKING:
    import aiohttp

HEALTH_PATH = "/health"

ASK_SECS = 0.5
"""How long servers may take to say how full they are."""

GRACE_SECS = 0.2
"""How long the others are waited for once one has answered."""

MAX_HEALTH_BYTES = 16 * 1024

Asked = TypeVar("Asked", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How full a server is.

    Parameters:
        slots: Sessions that it has room for.
        used: Sessions at this moment.
        draining: Whether it takes no new ones.
    """

    slots: int
    used: int
    draining: bool = False


def read_load(body: bytes) -> ServerLoad | None:
    """Read a server's ``/health``; ``None`` from other servers.

    Args:
        body: ``{"status": "ok", "slots": 8, "slots_used": 3}``.
    """
    try:
        fields = json.loads(body)
        slots, used, status = fields["slots"], fields["slots_used"], fields["status"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not (type(slots) is type(used) is int and slots > 0 and used >= 0):
        return None
    return ServerLoad(slots, used, draining=status != "ok")


async def ask_loads(
    addresses: Mapping[Asked, ServerAddress], ssl_context: ssl.SSLContext | None
) -> dict[Asked, ServerLoad]:
    """Ask servers at the same time how full they are.

    Args:
        addresses: The servers.
        ssl_context: For those whose certificate is not publicly known.

    Returns:
        What those said that answered in time, and are ours.
    """
    import aiohttp  # Pipecat brings it.

    async with aiohttp.ClientSession(trust_env=True) as http:
        asking = {
            asyncio.create_task(_ask(http, address, ssl_context)): asked
            for asked, address in addresses.items()
        }
        try:
            await _wait_for_answers(set(asking))
            answers = {asked: task.result() for task, asked in asking.items() if task.done()}
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    return {asked: load for asked, load in answers.items() if load is not None}


async def _wait_for_answers(asking: set["asyncio.Task[ServerLoad | None]"]) -> None:
    until_secs = time.monotonic() + ASK_SECS
    while asking and (left_secs := until_secs - time.monotonic()) > 0:
        done, asking = await asyncio.wait(
            asking, timeout=left_secs, return_when=asyncio.FIRST_COMPLETED
        )
        if any(task.result() is not None for task in done):
            until_secs = min(until_secs, time.monotonic() + GRACE_SECS)


async def _ask(
    http: "aiohttp.ClientSession", address: ServerAddress, ssl_context: ssl.SSLContext | None
) -> ServerLoad | None:
    parts = urlsplit(address.url)
    is_tls = parts.scheme == "wss"
    path = parts.path.removesuffix("/").removesuffix("/api/chat") + HEALTH_PATH
    host = parts.netloc.rpartition("@")[2]
    ip = address.ip and (f"[{address.ip}]" if ":" in address.ip else address.ip)
    netloc = host if ip is None else ip + (f":{parts.port}" if parts.port else "")
    url = urlunsplit(("https" if is_tls else "http", netloc, path, "", ""))
    try:
        async with http.get(
            url,
            headers={"Host": host},
            ssl=ssl_context if is_tls and ssl_context is not None else True,
            server_hostname=parts.hostname if is_tls else None,
            allow_redirects=False,
        ) as response:
            return read_load(await response.content.read(MAX_HEALTH_BYTES))
    # Whatever a proxy, TLS or a foreign server raises: how full it is stays unknown.
    except Exception as error:
        logger.debug(f"{host} does not say how full it is: {one_line(error)}")
        return None
