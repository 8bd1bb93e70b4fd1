"""The engine behind a WebSocket, for many callers, in Moshi's protocol.

Needs the extra ``server`` (aiohttp, which Pipecat brings as well).
"""

from pipecat_duplex.session import MissingExtra

try:
    import aiohttp.web  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtra(
        "the server needs aiohttp, which is not installed: pip install 'pipecat-duplex[server]'"
    ) from error

from pipecat_duplex.server.server import DuplexServer
from pipecat_duplex.server.settings import ServerSettings

__all__ = ["DuplexServer", "ServerSettings"]
