"""A caller on Twilio's Media Streams, as Twilio would be: for tests and measurements.

It speaks μ-law by the clock, 20 ms a message, over a line that may lose, delay and reorder them,
and plays what it is sent as Twilio does: one after another, from a buffer that a ``clear`` empties.
"""

import asyncio
import audioop
import base64
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

RATE_HZ = 8_000
CHUNK_SECS = 0.02
CHUNK_SAMPLES = 160
STREAM_SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
CALL_SID = "CA3c7b1b1d5b1d4b1a8f1f1c1e1d1b1a19"
ACCOUNT_SID = "AC0123456789abcdef0123456789abcdef"

# A player that has been dry for longer than this is between two utterances.
PAUSE_SECS = 0.2
SOUND_LEVEL = 0.01


@dataclass(frozen=True)
class Line:
    """What the way to Twilio does to the caller's audio.

    Parameters:
        loss: Share of the messages that is lost.
        jitter_secs: Each message is late by up to this much.
        reorders: Whether a late message may be overtaken.
        seed: Of both.
    """

    loss: float = 0.0
    jitter_secs: float = 0.0
    reorders: bool = False
    seed: int = 0

    def arrivals(self, chunks: int) -> list[tuple[float, int]]:
        """Return when which chunk comes, in seconds of the call, in the order of coming."""
        rng = np.random.default_rng(self.seed)
        delays_secs = rng.uniform(0, self.jitter_secs, chunks)
        lost = rng.random(chunks) < self.loss
        lost[:1] = False  # The first one says where the stream begins.
        times = (np.arange(chunks) + 1) * CHUNK_SECS + delays_secs
        if not self.reorders:
            times = np.maximum.accumulate(times)
        return sorted((float(times[i]), i) for i in range(chunks) if not lost[i])


@dataclass
class Received:
    """A message from the bot: when it came, and its audio if it has any."""

    secs: float
    event: str
    ulaw: bytes = b""
    name: str = ""


@dataclass
class Gap:
    """The player had nothing to play inside an utterance."""

    start_secs: float
    secs: float


@dataclass
class Call:
    """What happened in a call. Times are seconds of a steady clock.

    Parameters:
        origin_secs: When the caller's first sample was spoken.
        audio: What the caller said, float32, 8 kHz.
        sent_secs: When each chunk was sent, by its index.
        received: What came from the bot.
        close_code: The WebSocket close code, once closed.
        close_reason: Its reason.
    """

    origin_secs: float
    audio: np.ndarray
    sent_secs: dict[int, float] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    close_code: int | None = None
    close_reason: str = ""

    def times(self, event: str) -> list[float]:
        """Return when messages of a kind came."""
        return [message.secs for message in self.received if message.event == event]

    def player(self) -> "Player":
        """Play the call from the beginning."""
        player = Player(self.origin_secs)
        for message in self.received:
            if message.event == "media":
                player.play(message.secs, message.ulaw)
            elif message.event == "clear":
                player.clear(message.secs)
        return player

    def recording(self) -> np.ndarray:
        """Return what both said and heard at the caller's end, float32 of shape ``(n, 2)``."""
        agent = self.player().heard()
        both = np.zeros((max(len(self.audio), len(agent)), 2), np.float32)
        both[: len(self.audio), 0] = self.audio
        both[: len(agent), 1] = agent
        return both


class Player:
    """Plays as Twilio does: at once, what comes meanwhile after it, until a clear."""

    def __init__(self, origin_secs: float):
        self._origin_secs = origin_secs
        self._until_secs = -np.inf
        self._pieces: list[tuple[float, np.ndarray]] = []
        self.gaps: list[Gap] = []

    def play(self, now_secs: float, ulaw: bytes) -> None:
        pcm = decode(ulaw)
        dry_secs = now_secs - self._until_secs
        if 0 < dry_secs < PAUSE_SECS and self._is_torn(pcm):
            self.gaps.append(Gap(self._until_secs - self._origin_secs, dry_secs))
        start_secs = max(now_secs, self._until_secs)
        self._pieces.append((start_secs, pcm))
        self._until_secs = start_secs + len(pcm) / RATE_HZ

    def clear(self, now_secs: float) -> None:
        """Throw away what has not been played."""
        self._pieces = [
            (start, pcm[: max(0, round((now_secs - start) * RATE_HZ))])
            for start, pcm in self._pieces
        ]
        self._until_secs = min(self._until_secs, now_secs)

    @property
    def until_secs(self) -> float:
        """When the player runs dry."""
        return self._until_secs

    def heard(self) -> np.ndarray:
        """Return what was heard since the call began, float32, 8 kHz."""
        pieces = [(round((s - self._origin_secs) * RATE_HZ), pcm) for s, pcm in self._pieces]
        out = np.zeros(max((at + len(pcm) for at, pcm in pieces), default=0), np.float32)
        for at, pcm in pieces:
            out[at : at + len(pcm)] = pcm
        return out

    def _is_torn(self, pcm: np.ndarray) -> bool:
        """Tell whether there is sound on either side: a hole in silence is not heard."""
        last = self._pieces[-1][1] if self._pieces else pcm[:0]
        ends = (last[-CHUNK_SAMPLES:], pcm[:CHUNK_SAMPLES])
        return any(np.abs(end).max(initial=0) > SOUND_LEVEL for end in ends)


class Caller:
    """Calls a bot, and speaks."""

    def __init__(
        self,
        audio: np.ndarray,
        *,
        line: Line | None = None,
        digits: Mapping[float, str] | None = None,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        waits: bool = False,
        stays: bool = False,
    ):
        """Prepare a call.

        Args:
            audio: What to say, float32, 8 kHz.
            line: What the line does to it.
            digits: Keys to press, by second of the audio.
            headers: Of the WebSocket's request, such as Twilio's signature.
            parameters: What the TwiML gave along.
            waits: Be silent until the agent begins.
            stays: Stay on the line, without a sound, until the bot hangs up.
        """
        self._audio = audio
        self._line = line or Line()
        self._digits = dict(digits or {})
        self._headers = dict(headers or {})
        self._parameters = {"from": "+15550100", **(parameters or {})}
        self._waits = waits
        self._stays = stays
        self._hanging_up = False
        self._numbers = itertools.count(1)

    def hang_up(self) -> None:
        """End the call before the audio does."""
        self._hanging_up = True

    async def call(self, url: str) -> Call:
        """Hold the call.

        Args:
            url: Of the bot's WebSocket.

        Returns:
            What happened.
        """
        async with connect(
            url, additional_headers=self._headers, compression=None, max_size=None
        ) as socket:
            await socket.send(json.dumps(connected_message()))
            start = start_object(customParameters=self._parameters)
            await self._send(socket, "start", start=start)
            call = Call(time.monotonic(), self._audio)
            listening = asyncio.create_task(_listen(socket, call))
            try:
                await self._speak(socket, call)
                if self._stays:
                    await listening
                else:
                    await self._send(socket, "stop", stop=_sids())
                    # Twilio closes the connection after its stop message.
                    await socket.close()
            except ConnectionClosed:
                pass  # The bot hung up.
            await listening
        call.close_code, call.close_reason = socket.close_code, socket.close_reason or ""
        return call

    async def _speak(self, socket: ClientConnection, call: Call) -> None:
        first = await self._wait(socket, call) if self._waits else 0
        call.audio = np.concatenate([np.zeros(first * CHUNK_SAMPLES, np.float32), self._audio])
        for at_secs, index in self._line.arrivals(len(self._audio) // CHUNK_SAMPLES):
            await self._sleep_until(call.origin_secs + first * CHUNK_SECS + at_secs)
            if self._hanging_up:
                return
            for pressed_secs in [secs for secs in self._digits if secs <= at_secs]:
                digit = self._digits.pop(pressed_secs)
                await self._send(socket, "dtmf", dtmf={"track": "inbound_track", "digit": digit})
            await self._send_chunk(socket, call, first + index)

    async def _wait(self, socket: ClientConnection, call: Call) -> int:
        """Send silence until the agent begins; return how many chunks."""
        for index in itertools.count():
            if call.times("media"):
                return index
            await self._sleep_until(call.origin_secs + (index + 1) * CHUNK_SECS)
            call.audio = np.zeros((index + 1) * CHUNK_SAMPLES, np.float32)
            await self._send_chunk(socket, call, index)
        raise AssertionError("count() does not end")

    async def _sleep_until(self, secs: float) -> None:
        await asyncio.sleep(max(0.0, secs - time.monotonic()))

    async def _send_chunk(self, socket: ClientConnection, call: Call, index: int) -> None:
        pcm = call.audio[index * CHUNK_SAMPLES : (index + 1) * CHUNK_SAMPLES]
        call.sent_secs[index] = time.monotonic()
        await self._send(socket, "media", media=media_object(index, encode(pcm)))

    async def _send(self, socket: ClientConnection, event: str, **fields) -> None:
        number = str(next(self._numbers))
        message = {"event": event, "sequenceNumber": number, "streamSid": STREAM_SID, **fields}
        await socket.send(json.dumps(message))


async def _listen(socket: ClientConnection, call: Call) -> None:
    """Note what comes, and echo marks when what came before them has been played."""
    player = Player(call.origin_secs)
    marks: list[asyncio.Task] = []
    try:
        async for text in socket:
            message = json.loads(text)
            now_secs = time.monotonic()
            received = Received(now_secs, message["event"])
            assert message["streamSid"] == STREAM_SID
            call.received.append(received)
            if received.event == "media":
                received.ulaw = base64.b64decode(message["media"]["payload"])
                player.play(now_secs, received.ulaw)
            elif received.event == "clear":
                player.clear(now_secs)
            elif received.event == "mark":
                received.name = message["mark"]["name"]
                marks.append(asyncio.create_task(_echo(socket, received.name, player, now_secs)))
    except ConnectionClosed:
        pass
    finally:
        for mark in marks:
            mark.cancel()


async def _echo(socket: ClientConnection, name: str, player: Player, now_secs: float) -> None:
    # A clear empties the buffer, and with it what the mark waits for.
    for at_secs in np.arange(now_secs, player.until_secs, CHUNK_SECS):
        if player.until_secs <= at_secs:
            break
        await asyncio.sleep(max(0.0, at_secs + CHUNK_SECS - time.monotonic()))
    mark = {"event": "mark", "streamSid": STREAM_SID, "mark": {"name": name}}
    await socket.send(json.dumps(mark))


def connected_message() -> dict:
    return {"event": "connected", "protocol": "Call", "version": "1.0.0"}


def start_object(**changes) -> dict:
    return {
        **_sids(),
        "streamSid": STREAM_SID,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": RATE_HZ, "channels": 1},
        "customParameters": {"from": "+15550100"},
    } | changes


def media_object(index: int, ulaw: bytes) -> dict:
    return {
        "track": "inbound",
        "chunk": str(index + 1),
        "timestamp": str(round(1000 * index * CHUNK_SECS)),
        "payload": base64.b64encode(ulaw).decode(),
    }


def encode(pcm: np.ndarray) -> bytes:
    pcm16 = np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2").tobytes()
    return audioop.lin2ulaw(pcm16, 2)


def decode(ulaw: bytes) -> np.ndarray:
    return np.frombuffer(audioop.ulaw2lin(ulaw, 2), "<i2").astype(np.float32) / np.float32(32768)


def _sids() -> dict:
    return {"accountSid": ACCOUNT_SID, "callSid": CALL_SID}
