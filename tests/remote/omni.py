"""vLLM-Omni's duplex endpoint with PersonaPlex, built from what its source does, on one machine.

Follows vllm-project/vllm-omni, read file by file, at these commits:

- ``entrypoints/duplex/serving.py``, ``entrypoints/duplex_omni.py``, and of PersonaPlex
  ``duplex/plugin.py`` and ``duplex/data_plane.py``, of 0e6174233565: handshake, read loop, voices
- ``engine/duplex/realtime_commands.py`` of 144b2a63f342, ``protocol/realtime/audio_input.py`` of
  23b8f6701b93 and PersonaPlex's ``duplex/input.py`` of 6746da288f2c: what a client may send
- ``engine/duplex/session/runner.py`` of 04a1a2fe9877: one frame for each append
- ``engine/duplex/session/manager.py`` of 0488663b75ca: how many sessions there are
- ``stage_input_processors/personaplex.py`` of 0e6174233565: a frame's sound comes with the frame
  after it, and in chunks
- ``engine/duplex/realtime_events.py`` of 052cad71752f: the pair of deltas for a unit of output
- ``entrypoints/duplex/session_attachment.py`` of 09290f8dafad: the numbers of events
- ``deploy/personaplex.yaml`` of 0e4a9cf32dc0: chunks of 5 codec frames behind a first one, 2
  sessions, 3,000 positions with the prompts

Guessed: how a key is refused (vLLM answers HTTP 401), and how a session ends whose context is full
(by the words of pull request 7277 an error, and then ``session.expired``).
"""

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from pipecat_duplex.session import STEP_SAMPLES, DuplexBackend, SessionConfig

MAX_EVENT_BYTES = 15 * 1024 * 1024
SAMPLE_RATE_HZ = 24_000
ERROR_TYPES = {
    "resource_exhausted": "rate_limit_error",
    "input_backpressure": "rate_limit_error",
    "runtime_data_plane_stream_failed": "server_error",
}
COMMANDS = {
    "session.update",
    "session.heartbeat",
    "session.close",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "response.cancel",
    "playback.ack",
}


@dataclass
class Manners:
    """How the server behaves.

    Parameters:
        max_sessions: Sessions at once.
        chunk_steps: Codec frames in a delta, after a first delta of one.
        context_steps: Positions of a session, with its prompts.
        prefill_steps: Positions that the prompts take.
        voices: Voices that the checkpoint has.
        api_key: The key that the server wants.
        chunk_period_ms: What the model takes at once: 80 is PersonaPlex, 1000 MiniCPM-o.
        created_secs: Time from a session's request to its beginning.
        flat_errors: Errors of the handshake have the shape of older versions.
        words: A text for each frame, where no backend speaks.
        tells_text: Whether the deltas of the transcript hold what the backend says. By the source,
            nothing puts the model's text into the output of the last stage.
        delta_bytes: Audio is cut into deltas of so many bytes, not at frames.
        faults: What is sent instead of the delta with that number.
        before: What is sent before the delta with that number.
        dies_at_frame: The engine dies: the socket is closed, without a last event.
        breaks_at_frame: The connection breaks.
        refuses_frame: A frame that the engine rejects.
    """

    max_sessions: int = 2
    chunk_steps: int = 5
    context_steps: int = 3000
    prefill_steps: int = 88
    voices: tuple[str, ...] = ("NATF0.pt", "NATF2.pt", "NATM1.pt")
    api_key: str | None = None
    chunk_period_ms: int = 80
    created_secs: float = 0.0
    flat_errors: bool = False
    words: dict[int, str] = field(default_factory=dict)
    tells_text: bool = True
    delta_bytes: int | None = None
    faults: dict[int, Any] = field(default_factory=dict)
    before: dict[int, str] = field(default_factory=dict)
    dies_at_frame: int | None = None
    breaks_at_frame: int | None = None
    refuses_frame: int | None = None


class Refused(Exception):
    """A client's event that the server rejects."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class OmniServer:
    """Serves ``/v1/realtime``."""

    def __init__(self, manners: Manners, backend: DuplexBackend | None = None):
        self.manners = manners
        self.backend = backend
        self.live: set[Call] = set()
        self.sessions: list[dict] = []
        self.queries: list[dict[str, str]] = []
        self.refusals: list[str] = []
        self.closed_by_client = 0
        self.acknowledged = 0
        self.heartbeats = 0
        self.frames = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        key = self.manners.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.queries.append(dict(request.query))
        call = Call(self, socket)
        try:
            await call.serve(request.query)
        except ConnectionError:
            pass
        finally:
            self.live.discard(call)
            await call.end_agent()
        return socket


class Call:
    """One connection, and the session that it opens."""

    def __init__(self, server: OmniServer, socket: web.WebSocketResponse):
        self._server = server
        self._manners = server.manners
        self._socket = socket
        self._buffer = bytearray()
        self._frames = 0
        self._sequence = itertools.count(1)
        self._sent = 0
        self._last_frame: tuple[np.ndarray, str] | None = None
        self._blocks: deque[tuple[np.ndarray, str]] = deque()
        self._deltas = 0
        self._audio = bytearray()
        self._agent: Any = None
        self._steps: Any = None

    async def serve(self, query) -> None:
        if query.get("autostart") != "0" and query.get("model"):
            session: dict = {"model": query["model"]}
        else:
            try:
                message = await self._socket.receive(timeout=10)
            except TimeoutError:
                return await self._handshake_error("config_timeout", "Timeout waiting for …")
            if message.type != WSMsgType.TEXT:
                return
            try:
                first = json.loads(message.data)
            except ValueError:
                return await self._handshake_error("invalid_json", "Invalid JSON in session.update")
            if not isinstance(first, dict):
                return await self._handshake_error("bad_event", "Realtime event must be an object")
            session = first.get("session", {}) if first["type"] == "session.update" else {}
        try:
            await self._open(session)
        except Refused as refused:
            return await self._handshake_error(refused.code, str(refused))
        await self._read()

    async def _open(self, session: dict) -> None:
        if len(self._server.live) >= self._manners.max_sessions:
            limit = self._manners.max_sessions
            raise Refused("resource_exhausted", f"duplex_session_capacity_exhausted: limit={limit}")
        self._server.live.add(self)
        await asyncio.sleep(self._manners.created_secs)
        voice = session.get("voice") or "NATF2.pt"
        if "/" in voice or not voice.endswith(".pt"):
            raise Refused("invalid_voice", "PersonaPlex voice must be a bundled .pt basename")
        if voice not in self._manners.voices:
            raise Refused(
                "prefill_unavailable",
                "PersonaPlex voice/persona prefill could not be prepared: PersonaPlex bundled "
                f"voice prompt {voice!r} was not found under 'nvidia/personaplex-7b-v1'",
            )
        if session.get("turn_detection") is not None:
            raise Refused("unsupported_turn_detection", "use turn_detection=null")
        self._input_format = session.get("input_audio_format", "pcm16")
        self._rate_hz = session.get("sample_rate_hz", 16_000)
        self._server.sessions.append(session)
        if self._server.backend is not None:
            self._agent = await self._server.backend.open(SessionConfig())
            self._steps = self._agent.steps()
        capabilities = {
            "chunk_period_ms": self._manners.chunk_period_ms,
            "implementation_level": "model_native_duplex",
            "supports_client_commit": False,
            "supports_session_resume": False,
        }
        public = {"id": f"duplex-{len(self._server.sessions)}", "capabilities": capabilities}
        await self._emit("session.created", session=public)
        await self._emit("session.updated", session=public)

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type != WSMsgType.TEXT:
                return  # Starlette's receive_text fails on a binary frame.
            try:
                going_on = await self._take(message.data)
            except Refused as refused:
                await self._error(refused.code, str(refused))
                continue
            if not going_on:
                return

    async def _take(self, raw: str) -> bool:
        if len(raw.encode()) > MAX_EVENT_BYTES:
            raise Refused("event_too_large", "Duplex event too large")
        try:
            event = json.loads(raw)
        except ValueError:
            raise Refused("invalid_json", "Invalid JSON event") from None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise Refused("bad_event", "Duplex event must be a JSON object with a type")
        kind = event["type"]
        if kind == "session.event_ack":
            self._acknowledge(event.get("server_event_seq"))
        elif kind == "session.close":
            self._server.closed_by_client += 1
            self._server.live.discard(self)
            await self._emit("session.closed", session_id="duplex", reason="client_close")
            await self._socket.close(code=1000, message=b"client_close")
            return False
        elif kind == "session.heartbeat":
            self._server.heartbeats += 1
            await self._emit("session.heartbeat_ack", session_id="duplex")
        elif kind == "input_audio_buffer.append":
            return await self._append(event)
        elif kind not in COMMANDS:
            raise Refused("unknown_event", f"Unknown duplex event type: {kind}")
        return True

    def _acknowledge(self, sequence) -> None:
        if not isinstance(sequence, int) or sequence < 0:
            raise Refused("invalid_event_ack", "session.event_ack requires a non-negative …")
        if sequence > self._sent:
            raise Refused("invalid_event_ack", f"{sequence} is newer than {self._sent}")
        self._server.acknowledged = sequence

    async def _append(self, event: dict) -> bool:
        audio = event.get("audio") or event.get("delta")
        if not isinstance(audio, str) or not audio:
            raise Refused("bad_event", "input_audio_buffer.append requires audio")
        audio_format = event.get("format") or event.get("input_audio_format") or self._input_format
        try:
            raw = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("bad_audio", "input audio is not valid base64") from None
        if audio_format != "pcm_f32le":
            raise Refused("bad_event", "PersonaPlex input format must be pcm_f32le")
        if (event.get("sample_rate_hz") or self._rate_hz) != SAMPLE_RATE_HZ:
            raise Refused("bad_event", "PersonaPlex sample_rate_hz must be 24000")
        if len(raw) % 4:
            raise Refused("bad_event", "PersonaPlex pcm_f32le byte length must be divisible by 4")
        if not np.isfinite(np.frombuffer(raw, "<f4")).all():
            raise Refused("bad_event", "PersonaPlex pcm_f32le samples must be finite")
        self._buffer += raw
        # One frame for each event, however much it brings.
        if len(self._buffer) < 4 * STEP_SAMPLES:
            return True
        frame = np.frombuffer(bytes(self._buffer[: 4 * STEP_SAMPLES]), "<f4")
        del self._buffer[: 4 * STEP_SAMPLES]
        return await self._step(frame)

    async def _step(self, frame: np.ndarray) -> bool:
        manners, index = self._manners, self._frames
        self._frames += 1
        self._server.frames += 1
        if index == manners.dies_at_frame:
            await self._socket.close(code=1000, message=b"session_closed")
            return False
        if index == manners.breaks_at_frame:
            assert self._socket._req is not None
            self._socket._req.transport.abort()
            return False
        if index == manners.refuses_frame:
            raise Refused("input_backpressure", "Duplex session has too many pending input bytes")
        if manners.prefill_steps + self._frames > manners.context_steps:
            await self._error("runtime_data_plane_stream_failed", "the session is full")
            await self._emit("session.expired", session_id="duplex", reason="stage_failure")
            await self._socket.close(code=1000, message=b"stage_failure")
            return False
        # The delay of the codebooks: a frame's sound comes with the frame after it.
        if self._last_frame is not None:
            self._blocks.append(self._last_frame)
        self._last_frame = await self._answer(frame, index)
        wanted = 1 if self._deltas == 0 else manners.chunk_steps
        if len(self._blocks) >= wanted:
            chunk = [self._blocks.popleft() for _ in range(wanted)]
            await self._speak(
                np.concatenate([pcm for pcm, _ in chunk]), "".join(t for _, t in chunk)
            )
        return True

    async def _answer(self, frame: np.ndarray, index: int) -> tuple[np.ndarray, str]:
        if self._agent is None:
            return frame, self._manners.words.get(index, "")
        self._agent.send(frame.copy())
        step = await anext(self._steps)
        text = (step.text_piece or "").replace("▁", " ")
        return step.pcm, text if self._manners.tells_text else ""

    async def _speak(self, pcm: np.ndarray, text: str) -> None:
        if self._deltas == 0:
            await self._emit("response.created", response_id="resp_1", response={"id": "resp_1"})
            await self._emit("response.speak", response_id="resp_1", metadata={"epoch": 0})
        self._audio += np.clip(pcm * 32768.0, -32768, 32767).astype("<i2").tobytes()
        size = self._manners.delta_bytes or len(self._audio)
        while len(self._audio) >= size > 0:
            delta = bytes(self._audio[:size])
            del self._audio[:size]
            await self._send_unit(delta, text)
            text = ""

    async def _send_unit(self, delta: bytes, text: str) -> None:
        number, self._deltas = self._deltas, self._deltas + 1
        about = {"response_id": "resp_1", "item_id": "item_resp_1", "output_index": 0}
        fault = self._manners.faults.get(number)
        if number in self._manners.before:
            await self._socket.send_str(self._manners.before[number])
        if isinstance(fault, str):
            await self._socket.send_str(fault)
        elif isinstance(fault, bytes):
            await self._socket.send_bytes(fault)
        else:
            fields = {
                "delta": base64.b64encode(delta).decode(),
                "format": "pcm16",
                "sample_rate_hz": SAMPLE_RATE_HZ,
                "metadata": {"epoch": 0, "end_of_turn": False},
            }
            await self._emit("response.output_audio.delta", **about, **(fields | (fault or {})))
        await self._emit("response.output_audio_transcript.delta", **about, delta=text)

    async def end_agent(self) -> None:
        if self._agent is not None:
            await self._agent.close()

    async def _emit(self, kind: str, **fields) -> None:
        self._sent = next(self._sequence)
        await self._socket.send_json({"type": kind, **fields, "server_event_seq": self._sent})

    async def _error(self, code: str, message: str) -> None:
        self._server.refusals.append(code)
        kind = ERROR_TYPES.get(code, "invalid_request_error")
        await self._emit("error", error={"type": kind, "code": code, "message": message})

    async def _handshake_error(self, code: str, message: str) -> None:
        if not self._manners.flat_errors:
            return await self._error(code, message)
        self._server.refusals.append(code)
        await self._socket.send_json({"type": "error", "error": message, "code": code})


@contextlib.asynccontextmanager
async def running(
    manners: Manners | None = None, backend: DuplexBackend | None = None
) -> AsyncIterator[tuple[OmniServer, str]]:
    """A server on loopback, with its URL."""
    server = OmniServer(manners or Manners(), backend)
    app = web.Application()
    app.router.add_get("/v1/realtime", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"vllm-omni://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
