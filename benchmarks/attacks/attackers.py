"""Callers who mean harm, each with one idea, in a process of its own.

python -m benchmarks.attacks.attackers say ws://127.0.0.1:8998 10
"""

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

import numpy as np
from loguru import logger
from websockets.asyncio.client import connect

from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.session import STEP_SAMPLES, DuplexError, SessionConfig
from pipecat_duplex.session.history import MAX_STEPS, STREAMS, History

SILENCE = np.zeros(STEP_SAMPLES, np.float32)

HALF_OPEN = 300
"""Connections that never finish their request."""

Attack = Callable[[str], Awaitable[None]]
"""One round of an attack on a server; it is begun again until the time is over."""


async def ask_for_huge_numbers(url: str) -> None:
    """Ask for a top-k beyond 64 bits, then send audio."""
    async with connect(f"{url}/api/chat?format=pcm&text_topk={2**63 + 1}") as socket:
        await socket.send(bytes([10]) + SILENCE.tobytes())
        await socket.recv()


async def flood_with_words(url: str) -> None:
    """Cut in with 4 kB of words, 125 times a second."""
    session = await RemoteBackend(url).open(SessionConfig())
    says: list[asyncio.Task[int]] = []
    try:
        for _ in range(125):
            says.append(asyncio.create_task(session.say("no " * 1300, cut_in=True)))
            await asyncio.sleep(1 / 125)
    finally:
        for say in says:
            say.cancel()
        await asyncio.gather(*says, return_exceptions=True)
        await session.close()


async def ask_for_a_role_and_hang_up(url: str) -> None:
    """Ask for the longest role, and hang up while it is read."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    query = f"format=pcm&text_prompt={quote('hello i can help ' * 400)}"
    writer.write(
        f"GET /api/chat?{query} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()


async def restore_again_and_again(url: str) -> None:
    """Bring a history of an hour."""
    session = await RemoteBackend(url).open(SessionConfig())
    try:
        assert session.memory is not None
        codes = np.zeros((STREAMS, MAX_STEPS), np.int32)
        audio = np.zeros((0, STEP_SAMPLES), np.float32)
        await session.restore(History(session.memory.fingerprint, codes, False, audio))
    finally:
        await session.close()


async def send_what_is_no_message(url: str) -> None:
    """Send messages of no kind, and of kinds with the wrong length."""
    async with connect(f"{url}/api/chat?format=pcm") as socket:
        for kind in range(0, 256, 5):
            await socket.send(bytes([kind]) + b"\xff" * 100)


async def call_and_hang_up(url: str) -> None:
    """Call, say nothing, and hang up at once."""
    session = await RemoteBackend(url).open(SessionConfig())
    await session.close()


async def leave_requests_unfinished(url: str) -> None:
    """Open connections whose requests never come to their end."""
    address = urlsplit(url)
    sockets = []
    try:
        for _ in range(HALF_OPEN):
            each = socket.create_connection((address.hostname, address.port), timeout=1)
            sockets.append(each)
            each.sendall(b"GET /api/chat HTTP/1.1\r\nHost: x\r\n")
            await asyncio.sleep(0.005)
        await asyncio.sleep(1)
    finally:
        for each in sockets:
            each.close()


ATTACKS: dict[str, Attack] = {
    "numbers": ask_for_huge_numbers,
    "say": flood_with_words,
    "role": ask_for_a_role_and_hang_up,
    "restore": restore_again_and_again,
    "messages": send_what_is_no_message,
    "calls": call_and_hang_up,
    "half-open": leave_requests_unfinished,
}


async def attack(name: str, url: str, secs: float) -> int:
    """Attack a server.

    Args:
        name: Of an attack.
        url: The server's, ``ws://host:port``.
        secs: How long.

    Returns:
        Rounds that were begun. A server may refuse every one of them.
    """
    until_secs, rounds = time.monotonic() + secs, 0
    while time.monotonic() < until_secs:
        rounds += 1
        try:
            async with asyncio.timeout(until_secs - time.monotonic() + 0.1):
                await ATTACKS[name](url)
        except (DuplexError, OSError, TimeoutError):
            await asyncio.sleep(0.02)
        except Exception as error:  # of the client's library: what the server refused, it did not
            if not type(error).__module__.startswith("websockets"):
                raise
            await asyncio.sleep(0.02)
    return rounds


async def main(name: str, url: str, secs: float, attackers: int = 2) -> None:
    """Attack with several attackers at a time, and print how many rounds they began."""
    rounds = await asyncio.gather(*(attack(name, url, secs) for _ in range(attackers)))
    print(sum(rounds))


if __name__ == "__main__":
    logger.remove()
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
