"""What an address means: one server, of either protocol, or a fleet."""

from collections.abc import Sequence
from typing import Any

from pipecat_duplex.remote.backend import OMNI_SCHEMES, RemoteBackend
from pipecat_duplex.remote.discovery import is_one_server
from pipecat_duplex.remote.fleet import RemoteFleet
from pipecat_duplex.remote.omni_backend import OmniBackend
from pipecat_duplex.session import DuplexBackend


def one_server(url: str, **options: Any) -> RemoteBackend:
    """Return a single server as a source of sessions.

    Args:
        url: Its address: ``vllm-omni://`` for vLLM-Omni, else of a server that speaks Moshi's
            protocol.
        **options: Arguments of :class:`~pipecat_duplex.remote.RemoteBackend`.

    Raises:
        DuplexError: The address cannot be used.
    """
    return OmniBackend(url, **options) if _is_omni(url) else RemoteBackend(url, **options)


def servers(url: str | Sequence[str], **options: Any) -> DuplexBackend:
    """Return what an address, or several, stand for as a source of sessions.

    Args:
        url: A server's address, a name with many addresses, a registry, or a list of them.
        **options: Arguments of :class:`~pipecat_duplex.remote.RemoteBackend`.

    Raises:
        DuplexError: An address cannot be used.
    """
    if isinstance(url, str) and (_is_omni(url) or is_one_server(url)):
        return one_server(url, **options)
    return RemoteFleet(url, **options)


def _is_omni(url: str) -> bool:
    return url.partition(":")[0].lower() in OMNI_SCHEMES
