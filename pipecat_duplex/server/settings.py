"""Limits and keys of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Keys, time limits and rate limits of a server.

    Parameters:
        api_keys: Callers must show one of these. Without any, everybody may call.
        allowed_origins: Web pages that may call besides the server's own, such as
            ``https://bot.example``; ``*`` is all. Callers that are no browser have no origin.
        max_session_secs: A session ends after this much audio, even if it asked for more, and no
            more than two seconds later by the clock.
        default_voice: The voice of callers who name one that is not there; ``""`` is the model's
            own. ``None`` refuses them.
        idle_secs: A caller that sends no audio for so long loses its slot. So does one that sends
            less than half of it, after a while.
        ping_secs: Time between two pings.
        dead_secs: A caller that answers no ping for so long is gone, or does not read.
        send_secs: A caller whose buffers stay full for so long does not read.
        ahead_secs: How far a caller's audio may run ahead of the clock.
        messages_per_sec: WebSocket frames that a caller may send, over a few seconds.
        bytes_per_sec: Bytes of its socket that a caller may send, over a few seconds.
        request_secs: How long a connection may take to send a request, and to take the answer.
        max_connections: Connections at a time, calls among them. Fewer where the process may not
            have so many files open.
        max_waiting_connections: Connections of one address that carry no call. The oldest goes
            when there are more.
        max_calls_per_address: Calls of one address at a time. ``None`` is no limit.
        retry_secs: When a caller that found no slot is told to try again.
        close_secs: How long a closing caller may take to say goodbye.
    """

    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_session_secs: float | None = None
    default_voice: str | None = None
    idle_secs: float = 60.0
    ping_secs: float = 5.0
    dead_secs: float = 15.0
    send_secs: float = 2.0
    ahead_secs: float = 30.0
    messages_per_sec: float = 500.0
    bytes_per_sec: float = 512 * 1024
    request_secs: float = 10.0
    max_connections: int = 2000
    max_waiting_connections: int = 64
    max_calls_per_address: int | None = None
    retry_secs: int = 1
    close_secs: float = 1.0
