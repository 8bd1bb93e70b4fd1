"""Connections before, between and below requests: how many, for how long, and what comes in."""

import asyncio
import ipaddress
from collections.abc import Callable
from typing import cast

from pipecat_duplex.server.limit import RateLimit

BACKLOG = 64
"""Connections that the kernel accepts for us; asyncio takes them all in one go."""

# What the model, the log and connections on their way in and out may have open.
_RESERVED_FILES = 4 * BACKLOG


class Passed(asyncio.Protocol):
    """Passes everything on to another protocol."""

    def __init__(self, inner: asyncio.Protocol):
        """Initialize around the other protocol."""
        self._inner = inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on."""
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()


class Connection(Passed):
    """A connection that has a deadline until it carries a call."""

    def __init__(self, inner: asyncio.Protocol, connections: "Connections"):
        """Initialize before the connection is made."""
        super().__init__(inner)
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_taken_in = False
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        # Not asserted: transports of uvloop are no asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self.address = _network(transport.get_extra_info("peername"))
        if not self._connections.enter(self):
            self._transport.abort()
            return
        self._is_taken_in = True
        self.wait()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        self._connections.leave(self)
        if self._is_taken_in:
            super().connection_lost(exc)

    def wait(self) -> None:
        """Give the connection until the deadline for its next request and the answer."""
        self._stop_waiting()
        if self._transport is None or self._transport.is_closing():
            return
        self._connections.end_call(self)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._connections.request_secs, self.abort)

    def begin_call(self) -> None:
        """Take note that a call is carried: it has limits of its own."""
        self._stop_waiting()
        self._connections.begin_call(self)

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Connections:
    """Who is connected.

    Where there are too many, the one goes that has waited longest without a whole request: a
    caller who means it needs milliseconds for one.
    """

    def __init__(self, *, most: int, most_waiting: int, request_secs: float):
        """Initialize without connections.

        Args:
            most: Connections in all.
            most_waiting: Connections of one address (IPv6: of one /64) that carry no call.
            request_secs: Until when a request, and its answer, must be through.
        """
        self._most = min(most, _file_limit())
        self._most_waiting = most_waiting
        self.request_secs = request_secs
        self._calls: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        self._waiting_of: dict[str, dict[Connection, None]] = {}
        self.turned_away = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._calls) + len(self._waiting)

    def enter(self, connection: Connection) -> bool:
        """Take a connection in, in place of another if need be; False if there is no room."""
        waiting = self._waiting_of.setdefault(connection.address, {})
        oldest = None
        if len(waiting) >= self._most_waiting:
            oldest = next(iter(waiting))
        elif len(self) >= self._most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                self.turned_away += 1
                return False
        self._waiting[connection] = None
        waiting[connection] = None
        if oldest is not None:
            self.turned_away += 1
            self.leave(oldest)
            oldest.abort()
        return True

    def begin_call(self, connection: Connection) -> None:
        """Take note that a connection carries a call."""
        if connection in self._waiting:
            self.leave(connection)
            self._calls.add(connection)

    def end_call(self, connection: Connection) -> None:
        """Take note that a connection carries a call no more."""
        if connection in self._calls:
            self._calls.discard(connection)
            self._waiting[connection] = None
            self._waiting_of.setdefault(connection.address, {})[connection] = None

    def leave(self, connection: Connection) -> None:
        """Forget a connection. May be called any number of times."""
        self._calls.discard(connection)
        self._waiting.pop(connection, None)
        waiting = self._waiting_of.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting_of[connection.address]


class FrameCounter:
    """Counts the frames of a WebSocket in the bytes of its stream.

    A message may come in any number of frames, empty ones too, before there is a message to count.
    """

    def __init__(self):
        """Initialize before the first byte."""
        self._head = b""
        self._skip = 0

    def count(self, data: bytes) -> int:
        """Return how many frames begin in these bytes, or are completed by their head."""
        frames, position = 0, min(self._skip, len(data))
        self._skip -= position
        while position < len(data):
            head = self._head + data[position : position + 14 - len(self._head)]
            size = _head_size(head)
            if size is None or len(head) < size:
                self._head = head
                return frames
            frames += 1
            position += size - len(self._head)
            self._head = b""
            self._skip = _payload_size(head)
            passed = min(self._skip, len(data) - position)
            position += passed
            self._skip -= passed
        return frames


class Meter(Passed):
    """Holds what comes in on a WebSocket to a rate, in frames and in bytes of the socket."""

    def __init__(
        self,
        inner: asyncio.Protocol,
        *,
        frames: RateLimit,
        sizes: RateLimit,
        now_secs: Callable[[], float],
        on_excess: Callable[[], None],
    ):
        """Initialize around a protocol that is connected.

        Args:
            inner: The protocol.
            frames: How many frames may come.
            sizes: How many bytes may come.
            now_secs: The time.
            on_excess: Called once, when more came. Nothing is passed on from then on.
        """
        super().__init__(inner)
        self._frames = frames
        self._sizes = sizes
        self._now_secs = now_secs
        self._on_excess = on_excess
        self._counter = FrameCounter()
        self._is_over = False

    def data_received(self, data: bytes) -> None:
        """Count, and pass on what may come."""
        if self._is_over:
            return
        now_secs = self._now_secs()
        fits = self._sizes.take(len(data), now_secs)
        if fits and self._frames.take(self._counter.count(data), now_secs):
            super().data_received(data)
        else:
            self._is_over = True
            self._on_excess()


def _head_size(head: bytes) -> int | None:
    """Size of a frame's head, of which the first bytes are there."""
    if len(head) < 2:
        return None
    length = head[1] & 0x7F
    return 2 + (4 if head[1] & 0x80 else 0) + {126: 2, 127: 8}.get(length, 0)


def _payload_size(head: bytes) -> int:
    length = head[1] & 0x7F
    if length == 126:
        return int.from_bytes(head[2:4], "big")
    return int.from_bytes(head[2:10], "big") if length == 127 else length


def _network(peername: object) -> str:
    """What counts as one address; a caller with IPv6 has 2⁶⁴ of them."""
    host = str(peername[0]) if isinstance(peername, tuple) and peername else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return address.packed[:8].hex()
    return host


def _file_limit() -> int:
    """How many connections the process may have open and still work."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 30
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(BACKLOG, soft - _RESERVED_FILES)
