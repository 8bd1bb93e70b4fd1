"""A server elsewhere as a source of sessions."""

import asyncio
import json
import logging
import random
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from loguru import logger
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)

from pipecat_duplex import protocol
from pipecat_duplex.protocol.opus import has_opus
from pipecat_duplex.remote.session import RemoteLimits, RemoteSession
from pipecat_duplex.session import (
    AtCapacity,
    DuplexBackend,
    DuplexError,
    InvalidPrompt,
    MissingExtra,
    SessionConfig,
)

CHAT_PATH = "/api/chat"
HEALTH_PATH = "/health"
MAX_HEALTH_BYTES = 16 * 1024

HANDSHAKE_SECS = 5.0
"""How long a server may take to be ready for audio."""

PROMPTED_HANDSHAKE_SECS = 60.0
"""The same where it has to read prompts first."""

PROMPT_SECS = 10.0
"""How much longer a connection may take with prompts: our server reads them before the upgrade."""

# At its lowest level, websockets logs requests with all headers, keys too.
_SOCKET_LOG = logging.getLogger(f"{__name__}.socket")
_SOCKET_LOG.setLevel(logging.WARNING)

OMNI_SCHEMES = {"vllm-omni": "ws", "vllm-omnis": "wss"}
"""How the addresses of vLLM-Omni's servers begin."""

FIRST_PAUSE_SECS = 0.2
TRY_AGAIN_LATER = 1013

# Two Opus streams of a Moshi server cannot be told apart by their form, their delay can: the
# handshake with versions is the Rust backend's, whose acoustic delay is two steps.
LEAD_STEPS = 1
RUST_LEAD_STEPS = 2
# PersonaPlex has spent the first step on its prompts.
PERSONAPLEX_LEAD_STEPS = 0

HEALTH_SECS = 3.0
"""How long a server may take to say whether it is one of ours."""

RUST_MAX_SECS = 360.0
"""The Rust backend ends every session then, and does not say so before."""


class Fuller(AtCapacity):
    """A server has room, and more calls than the caller was told."""


class RemoteBackend(DuplexBackend):
    """Opens sessions on a server that speaks Moshi's protocol.

    That is ``pipecat-duplex serve``, ``moshi.server``, the Rust ``moshi-backend`` or PersonaPlex's
    server. Each session is a connection of its own.

    Example::

        backend = RemoteBackend("ws://gpu.example:8998/api/chat", api_key="secret")
        session = await backend.open(SessionConfig())
    """

    is_greedy = False
    """Whether the server always takes the most likely token, and refuses seeds."""

    _protocol = "Moshi's protocol"
    _unready_hint = ": it serves others, or is still preparing"

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        voice_prompt: str | None = None,
        text_prompt: str | None = None,
        audio_format: Literal["auto", "opus"] = "auto",
        ssl_context: ssl.SSLContext | None = None,
        connect_secs: float = 5.0,
        handshake_secs: float | None = None,
        attempts: int = 3,
        limits: RemoteLimits | None = None,
        moves: bool = False,
        ip: str | None = None,
    ):
        """Initialize; nothing is connected yet.

        Args:
            url: ``ws://`` or ``wss://``, with the host and, if it is not ``/api/chat``, the path.
                Parameters in it are kept.
            api_key: Shown to the server as a bearer token.
            voice_prompt: Voice for PersonaPlex, the full file name on its server. PersonaPlex needs
                both prompts. One alone is for this package's server.
            text_prompt: Role for PersonaPlex.
            audio_format: ``auto`` asks for raw audio, which this package's server knows, and goes
                on in Opus with all others. ``opus`` does not ask.
            ssl_context: For servers whose certificate is not publicly known.
            connect_secs: How long a connection may take; 10 more with prompts, which this package's
                server reads before it answers.
            handshake_secs: How long the server may take from there to being ready. None is 5, or
                60 with prompts, here or in a session's config, which it has to read first.
            attempts: Connections that are tried, with growing pauses, if one fails.
            limits: When a server counts as dead.
            moves: Whether sessions go elsewhere by themselves when the server shuts down.
            ip: The address to connect to, where the name in the URL has several.

        Raises:
            DuplexError: The URL cannot be used.
        """
        self._url = normal_url(url)
        if api_key and not api_key.isprintable():
            raise DuplexError("the API key holds a line break or another control character")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._prompts: dict[str, str] = {}
        if voice_prompt is not None:
            self._prompts["voice_prompt"] = voice_prompt
        if text_prompt is not None:
            self._prompts["text_prompt"] = text_prompt
        self._is_ours: bool | None = None
        self._audio_format: protocol.AudioFormat = "pcm" if audio_format == "auto" else "opus"
        self._ssl_context = ssl_context
        self._connect_secs = connect_secs
        self._handshake_secs = handshake_secs
        self._attempts = attempts
        self._limits = limits or RemoteLimits()
        self._moves = moves
        self._ip = ip
        self._sessions: set[RemoteSession] = set()
        self._closed = False

    @property
    def host(self) -> str:
        """The server, for logs and errors: never the query, which may hold a key."""
        name = urlsplit(self._url).netloc.rpartition("@")[2]
        return name if self._ip is None else f"{name} ({self._ip})"

    async def open(self, config: SessionConfig, *, most_used: int | None = None) -> RemoteSession:
        """Begin a conversation.

        A connection that fails is tried again. A refusal is final.

        Args:
            config: Sampling, limits and persona. A server ignores fields that it does not know.
            most_used: A server with more calls than this is to refuse; only ours do.

        Raises:
            Fuller: It has more.
            AtCapacity: The server has no slot, or accepted the call and did not get ready.
            InvalidPrompt: The server does not have the voice, or cannot read it.
            DuplexError: It cannot be reached or refuses the call; the message says why.
        """
        if self._closed:
            raise DuplexError(f"the connection to {self.host} was closed")
        prompts = self._prompts_of(config)
        # A session that is to be restored reads its prompts with the history.
        prompted = bool(prompts) and not config.restores
        await self._check(config, prompts)
        ready_secs = self._ready_secs(prompted)
        connect_secs = self._connect_secs + (PROMPT_SECS if prompted else 0.0)
        connection = await self._connect(self._session_url(config), connect_secs, most_used)
        try:
            session = await self._shake_hands(connection, config, ready_secs)
        except BaseException:
            await connection.close()
            raise
        self._sessions = {s for s in self._sessions if not s.ended}
        self._sessions.add(session)
        logger.debug(f"Session {session.id} on {self.host} opened, audio: {session.audio_format}")
        return session

    async def close(self) -> None:
        """End every session. May be called any number of times."""
        self._closed = True
        sessions, self._sessions = self._sessions, set()
        await asyncio.gather(*(session.close() for session in sessions))

    async def _check(self, config: SessionConfig, prompts: dict[str, str]) -> None:
        """Refuse what the server will not understand.

        Raises:
            DuplexError: It is this.
        """
        if len(prompts) == 1 and not await self._is_one_of_ours():
            (given,) = prompts
            missing = ({"voice_prompt", "text_prompt"} - {given}).pop()
            raise DuplexError(
                f"{self.host} is not a server of pipecat-duplex, and PersonaPlex needs both "
                f"prompts: give {missing} too, empty if need be"
            )

    def _ready_secs(self, prompted: bool) -> float:
        """Return how long the server may take to be ready."""
        if self._handshake_secs is not None:
            return self._handshake_secs
        return PROMPTED_HANDSHAKE_SECS if prompted else HANDSHAKE_SECS

    def _session_url(self, config: SessionConfig) -> str:
        parts = urlsplit(self._url)
        query = protocol.build_query(config, self._audio_format, moves=self._moves) | self._prompts
        query |= dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            return urlunsplit(parts._replace(query=urlencode(query)))
        except UnicodeEncodeError as e:
            raise InvalidPrompt(f"a prompt is not valid Unicode: {e.reason}") from None

    def _prompts_of(self, config: SessionConfig) -> dict[str, str]:
        """Return the prompts of a session; one that is empty counts, where it was given here."""
        asked = {"voice_prompt": config.voice_prompt, "text_prompt": config.text_prompt}
        return {name: text for name, text in asked.items() if text} | self._prompts

    async def _is_one_of_ours(self) -> bool:
        if self._is_ours is None:
            self._is_ours = await asyncio.to_thread(self._ask_health)
        return self._is_ours

    def _ask_health(self) -> bool:
        """Ask a server for its health, which only ours have. Blocks."""
        parts = urlsplit(self._url)
        scheme = "https" if parts.scheme == "wss" else "http"
        path = parts.path.removesuffix(CHAT_PATH) + HEALTH_PATH
        host = parts.netloc.rpartition("@")[2]
        if self._ip is not None and scheme == "http":
            ip = f"[{self._ip}]" if ":" in self._ip else self._ip
            host = ip if parts.port is None else f"{ip}:{parts.port}"
        url = urlunsplit((scheme, host, path, "", ""))
        asking = urllib.request.Request(url, headers={"Host": parts.netloc.rpartition("@")[2]})
        try:
            try:
                answer = urllib.request.urlopen(
                    asking, timeout=HEALTH_SECS, context=self._ssl_context
                )
            except urllib.error.HTTPError as refused:
                answer = refused  # Ours says so too while it drains.
            with answer:
                fields = json.loads(answer.read(MAX_HEALTH_BYTES))
        # Whatever a proxy, TLS or a foreign server raises: it has not shown to be ours.
        except Exception as e:
            logger.debug(f"{self.host} does not tell its health: {_describe(e)}")
            return False
        return isinstance(fields, dict) and "slots" in fields

    #
    # connecting
    #

    async def _connect(
        self, url: str, connect_secs: float, most_used: int | None
    ) -> ClientConnection:
        headers = dict(self._headers)
        if most_used is not None:
            headers[protocol.MOST_USED] = str(most_used)
        pause_secs = FIRST_PAUSE_SECS
        problem: Exception = DuplexError("no attempt was made")
        for left in reversed(range(self._attempts)):
            try:
                return await self._connect_once(url, connect_secs, headers)
            except InvalidStatus as e:
                if e.response.status_code not in (500, 502, 504) or not left:
                    raise self._refusal(e) from e
                problem = e
            except (OSError, InvalidHandshake, EOFError, ConnectionClosed) as e:
                problem = e
            except WebSocketException as e:
                raise DuplexError(f"cannot talk to {self.host}: {_describe(e)}") from e
            # A proxy without its library, a name that is none: nothing that a second try mends.
            except Exception as e:
                raise DuplexError(f"cannot connect to {self.host}: {_describe(e)}") from e
            if left:
                logger.debug(f"{self.host}: {_describe(problem)}; next try in {pause_secs:.1f} s")
                await asyncio.sleep(pause_secs * random.uniform(0.75, 1.25))
                pause_secs *= 2
        raise DuplexError(f"cannot reach {self.host}: {_describe(problem)}") from problem

    async def _connect_once(
        self, url: str, connect_secs: float, headers: dict[str, str]
    ) -> ClientConnection:
        options: dict[str, Any] = {"ssl": self._ssl_context, "host": self._ip}
        options = {name: value for name, value in options.items() if value is not None}
        connecting = connect(
            url,
            additional_headers=headers,
            compression=None,
            open_timeout=connect_secs,
            ping_interval=None,  # the session watches by itself, once the server is ready
            close_timeout=self._limits.close_secs,
            max_size=protocol.MAX_MESSAGE_BYTES,
            logger=_SOCKET_LOG,
            max_queue=256,
            **options,
        )
        # A plain await does not try again by itself, as connect's iterator would.
        return await connecting

    def _refusal(self, error: InvalidStatus) -> DuplexError:
        response = error.response
        kind, reason = _response_reason(response.body)
        reason = reason or response.reason_phrase or "no reason given"
        text = f"{self.host} refused the call with HTTP {response.status_code}: {reason}"
        if response.status_code in (429, 503):
            return Fuller(text) if kind == protocol.FULLER else AtCapacity(text)
        return InvalidPrompt(text) if kind == "prompt" else DuplexError(text)

    #
    # the handshake
    #

    async def _shake_hands(
        self, connection: ClientConnection, config: SessionConfig, ready_secs: float
    ) -> RemoteSession:
        try:
            async with asyncio.timeout(ready_secs):
                return await self._greet(connection, config)
        except TimeoutError as e:
            raise AtCapacity(
                f"{self.host} accepted the call and was not ready within "
                f"{ready_secs:g} s{self._unready_hint}"
            ) from e
        except ConnectionClosed as e:
            raise self._closed_early(e) from e
        except protocol.WireError as e:
            raise DuplexError(f"{self.host} does not speak {self._protocol}: {e}") from e

    async def _greet(self, connection: ClientConnection, config: SessionConfig) -> RemoteSession:
        """Exchange what comes before the first audio."""
        metadata: dict = {}
        while True:
            message = protocol.parse(await connection.recv())
            # The Rust backend sends metadata before the handshake, others after it.
            if isinstance(message, protocol.Metadata):
                metadata |= message.fields
            elif isinstance(message, protocol.Error):
                raise DuplexError(f"{self.host} refused the call: {message.reason}")
            elif isinstance(message, protocol.Handshake):
                return self._make_session(connection, config, message, metadata)

    def _make_session(
        self,
        connection: ClientConnection,
        config: SessionConfig,
        handshake: protocol.Handshake,
        metadata: dict,
    ) -> RemoteSession:
        greeting = protocol.Greeting.read(protocol.Metadata(metadata))
        audio_format: protocol.AudioFormat = "opus"
        if self._audio_format == "pcm" and greeting and greeting.audio_format == "pcm":
            audio_format = "pcm"
        elif not has_opus():
            raise MissingExtra(
                f"{self.host} speaks Opus, which needs sphn: pip install 'pipecat-duplex[opus]'"
            )
        is_rust = handshake.versions is not None
        lead_steps = RUST_LEAD_STEPS if is_rust else LEAD_STEPS
        if greeting is None and not is_rust and self._prompts_of(config):
            lead_steps = PERSONAPLEX_LEAD_STEPS
        return RemoteSession(
            connection,
            host=self.host,
            audio_format=audio_format,
            config=config,
            lead_steps=lead_steps,
            strips_spaces=is_rust,
            limits=self._limits,
            greeting=greeting,
            max_secs=RUST_MAX_SECS if is_rust else (greeting.max_secs if greeting else None),
        )

    def _closed_early(self, error: ConnectionClosed) -> DuplexError:
        code = error.rcvd.code if error.rcvd else 1006
        reason = (error.rcvd.reason if error.rcvd else "") or f"close code {code}"
        if code == TRY_AGAIN_LATER:
            return AtCapacity(f"{self.host} has no room: {reason}")
        return DuplexError(f"{self.host} hung up before it was ready: {reason}{self._early_hint()}")

    def _early_hint(self) -> str:
        return "" if self._prompts else " (PersonaPlex needs voice_prompt and text_prompt)"


def normal_url(url: str) -> str:
    """Return a server's address in full.

    Args:
        url: With a host; ``http`` means ``ws``, and without a path it is ``/api/chat``.

    Raises:
        DuplexError: It is no address of a server.
    """
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    try:
        return full_url(url, schemes, CHAT_PATH, "a server", "ws://host:8998")
    except DuplexError as e:
        if url.partition(":")[0].lower() in OMNI_SCHEMES:
            raise DuplexError(
                f"{_told(url)!r} is a vLLM-Omni server, which is called alone: give it to "
                "DuplexLLMService(url=…)"
            ) from e
        raise


def full_url(url: str, schemes: Mapping[str, str], path: str, kind: str, example: str) -> str:
    """Return an address in full.

    Args:
        url: With a host.
        schemes: The schemes that it may have, and what they mean.
        path: The path, where there is none.
        kind: What is at the address, for errors.
        example: An address, for errors.

    Raises:
        DuplexError: It is no such address.
    """
    problem = f"{_told(url)!r} is not the address of {kind}, such as {example}"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as e:
        raise DuplexError(f"{problem}: {e}") from e
    if parts.scheme not in schemes or not has_host:
        raise DuplexError(problem)
    path = parts.path if parts.path.strip("/") else path
    return urlunsplit(parts._replace(scheme=schemes[parts.scheme], path=path, fragment=""))


def _told(url: str) -> str:
    """Return an address without the query, which may hold a key."""
    return _without_secrets(url.partition("?")[0])


def _response_reason(body: bytes | bytearray | None) -> tuple[str, str]:
    """What a server says in its answer, kind and reason: ours in JSON, others in a line of text."""
    text = (body or b"").decode(errors="replace").strip()
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return "", text.splitlines()[0][:200] if text and not text.startswith("<") else ""
    if not isinstance(fields, dict):
        return "", ""
    return str(fields.get("error", "")), str(fields.get("reason", ""))[:500]


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return _without_secrets(str(error)) or type(error).__name__


def _without_secrets(text: str) -> str:
    """Leave out what in an address may be a key: of the server, or of a proxy."""
    text = re.sub(r"(\w+://)[^/@\s]*@", r"\1", text)
    return re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?…", text)
