"""What a server allows its callers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Who may call, how long, and how fast.

    Parameters:
        api_keys: Callers must show one of these. Without any, everybody may call.
        allowed_origins: Web pages that may call besides the server's own, such as
            ``https://bot.example``; ``*`` is all. Callers that are no browser have no origin.
        max_session_secs: A session ends after this much audio, whatever it asked for.
        idle_secs: A caller that sends no audio for so long loses its slot.
        ping_secs: Time between two pings.
        dead_secs: A caller that answers no ping for so long is gone, or does not read.
        send_secs: A caller whose buffers stay full for so long does not read.
        ahead_secs: How far a caller's audio may run ahead of the clock.
        messages_per_sec: Messages that a caller may send, over a few seconds.
        bytes_per_sec: Bytes that a caller may send, over a few seconds.
        retry_secs: When a caller that found no slot is told to try again.
        close_secs: How long a closing caller may take to say goodbye.
    """

    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_session_secs: float | None = None
    idle_secs: float = 60.0
    ping_secs: float = 5.0
    dead_secs: float = 15.0
    send_secs: float = 2.0
    ahead_secs: float = 30.0
    messages_per_sec: float = 500.0
    bytes_per_sec: float = 512 * 1024
    retry_secs: int = 1
    close_secs: float = 1.0
