"""Sockets to listen on."""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from pipecat_duplex.session import DuplexError

_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_TRIES = 20


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind a socket for each address of a host; nobody can connect before one listens.

    An address that a name has and the machine has not, such as ``::1`` of ``localhost`` where IPv6
    is off, is left out.

    Args:
        host: The host: a name or an address.
        port: The port; 0 takes a free one, the same for all addresses.

    Raises:
        DuplexError: The port is taken, or there is no such address.
    """
    try:
        if not 0 <= port <= 65_535:
            raise OverflowError("ports go up to 65535")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Linux names an address of `localhost` twice where the file of hosts does.
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        return _bind_all(addresses, port)
    except (OSError, OverflowError, UnicodeError) as e:
        raise DuplexError(f"cannot listen on {host}, port {port}: {e}") from e


def is_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Whether only this machine can connect."""
    return all(_is_loopback(each.getsockname()[0]) for each in sockets)


def url_of(scheme: str, host: str, port: int, path: str = "") -> str:
    """Return an address as it can be called: with brackets around IPv6."""
    return f"{scheme}://[{host}]:{port}{path}" if ":" in host else f"{scheme}://{host}:{port}{path}"


def _bind_all(addresses: Sequence[tuple[int, Any]], port: int) -> list[socket.socket]:
    """Bind all addresses; a free port of the first may be taken on the next."""
    for tries_left in reversed(range(_TRIES if port == 0 else 1)):
        bound: list[socket.socket] = []
        absent: OSError | None = None
        try:
            for family, address in addresses:
                chosen = bound[0].getsockname()[1] if bound else port
                try:
                    bound.append(_bind_one(family, (address[0], chosen, *address[2:])))
                except OSError as e:
                    if e.errno not in _ABSENT:
                        raise
                    absent = e
            if bound:
                return bound
            raise absent or OSError("it has no address")
        except OSError as e:
            for each in bound:
                each.close()
            if e.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("unreachable")


def _bind_one(family: int, address: tuple) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
