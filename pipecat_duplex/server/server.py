"""The server: it admits callers, and reports its health and metrics."""

import asyncio
import math
import socket as sockets
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import WSCloseCode, web
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.protocol.opus import has_opus
from pipecat_duplex.server.access import has_key, is_allowed_origin, is_local_host
from pipecat_duplex.server.call import Call, Ending
from pipecat_duplex.server.call_log import HttpLogger, ServerLog
from pipecat_duplex.server.connections import BACKLOG, Connection, Connections
from pipecat_duplex.server.listen import bind, is_loopback
from pipecat_duplex.server.metrics import CONTENT_TYPE, Metrics
from pipecat_duplex.server.settings import ServerSettings
from pipecat_duplex.session import (
    AtCapacity,
    BackendHealth,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    InvalidPrompt,
    ReportsHealth,
    SessionConfig,
)
from pipecat_duplex.session.fair_clock import FairClock

DRAINED = Ending(
    "drained", WSCloseCode.TRY_AGAIN_LATER, "the server is shutting down: please call again"
)

STUCK_SECS = 1.5
"""A backend that does not tell its health is stuck when all steps have waited for so long."""

KEEPALIVE_SECS = 15.0

HUNG_UP_SECS = 0.1
"""How often a caller whose session is being prepared is looked after."""

MAX_LINE_BYTES = 128 * 1024
"""Of a request: a role of 8,000 characters, each of up to 12 bytes in an address, and the rest."""


API_PATHS = ("/api/chat", "/health", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """A caller is refused.

    Parameters:
        kind: One word, for the metrics and for programs.
        status: HTTP status.
        reason: In words for a person.
        headers: Further headers of the answer.
    """

    def __init__(self, kind: str, status: int, reason: str, headers: dict[str, str] | None = None):
        """Initialize the refusal."""
        super().__init__(reason)
        self.kind = kind
        self.status = status
        self.reason = reason
        self.headers = headers or {}


class DuplexServer:
    """Serves the sessions of a backend to callers who speak Moshi's protocol.

    Example::

        engine = await Engine.load("embedded", slots=8)
        server = DuplexServer(engine, slots=engine.slots)
        await server.start("localhost", 8998)
        ...
        await server.drain(timeout_secs=30)
        await server.stop()
        await engine.close()
    """

    def __init__(
        self,
        backend: DuplexBackend,
        *,
        slots: int,
        settings: ServerSettings | None = None,
        static: Path | None = None,
    ):
        """Initialize.

        Args:
            backend: Where sessions come from. It is not closed by the server.
            slots: Sessions that it has room for, for the metrics; the backend itself says when it
                is full.
            settings: What callers may do.
            static: A folder with a web page, served beside the API. Anybody may read it.
        """
        self.metrics = Metrics()
        self._log = ServerLog()
        self._clock = FairClock()
        self._static = static
        self._local_only = False
        self._callers: Counter[str] = Counter()
        self._backend = backend
        self._slots = slots
        self._settings = settings or ServerSettings()
        self._calls: set[Call] = set()
        self._sessions_open = 0
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._draining = False
        self._drain_secs = 0.0
        self._drained_at_secs = 0.0
        self._sending_away = False
        self._runner: web.AppRunner | None = None

    @property
    def sessions_open(self) -> int:
        """Callers at this moment."""
        return self._sessions_open

    @property
    def draining(self) -> bool:
        """Whether new callers are refused for good."""
        return self._draining

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        assert self._runner is not None and self._runner.addresses
        return self._runner.addresses[0][1]

    def make_app(self) -> web.Application:
        """Return the web application, to be served in another way than :meth:`start`'s."""
        app = web.Application(middlewares=[self._check_host])
        app.router.add_get("/api/chat", self._handle_chat)
        app.router.add_get("/health", self._handle_health)
        app.router.add_get("/metrics", self._handle_metrics)
        if self._static is not None:
            app.router.add_get("/", _redirect_to_index)
            app.router.add_static("/", self._static)
        app.on_response_prepare.append(
            self._add_headers  # pyright: ignore[reportArgumentType]
        )
        app.cleanup_ctx.append(self._run_clock)
        return app

    async def start(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        *,
        bound: Sequence[sockets.socket] | None = None,
    ) -> None:
        """Listen.

        Args:
            host: The address.
            port: The port; 0 takes a free one.
            ssl_context: For TLS.
            bound: Sockets of :func:`~pipecat_duplex.server.listen.bind` to listen on instead.

        Raises:
            DuplexError: The port is taken, or there is no such address.
        """
        settings = self._settings
        runner = web.AppRunner(
            self.make_app(),
            access_log=None,
            logger=HttpLogger(self._log),
            shutdown_timeout=1.0,
            keepalive_timeout=KEEPALIVE_SECS,
            lingering_time=1.0,
            max_line_size=MAX_LINE_BYTES,
        )
        with ExitStack() as opened:
            if bound is None:
                bound = bind(host, port)
            for listener in bound:
                opened.callback(listener.close)
            await runner.setup()
            connections = Connections(
                most=settings.max_connections,
                most_waiting=settings.max_waiting_connections,
                request_secs=settings.request_secs,
            )
            # Before anybody is let in.
            self._local_only = is_loopback(bound) and not settings.api_keys
            try:
                for listener in bound:
                    await _Site(runner, listener, ssl_context, connections).start()
            except (OSError, OverflowError) as e:
                await runner.cleanup()
                raise DuplexError(f"cannot listen on {host}, port {port}: {e}") from e
            opened.pop_all()
        self._runner = runner

    async def _run_clock(self, app: web.Application) -> AsyncIterator[None]:
        async with self._clock.running():
            yield

    async def drain(self, timeout_secs: float) -> None:
        """Refuse new callers, tell those who are there, and wait until they have gone.

        Callers that can go on elsewhere leave by themselves, as soon as another server has them.

        Args:
            timeout_secs: Callers who are still there after this time are sent away with code 1013.
        """
        self._draining = True
        self._drain_secs = timeout_secs
        self._drained_at_secs = time.monotonic() + timeout_secs
        try:
            async with asyncio.timeout(timeout_secs):
                await asyncio.gather(*(call.warn(timeout_secs) for call in self._calls))
                await self._nobody.wait()
        except TimeoutError:
            self._sending_away = True
            for call in self._calls:
                call.stop(DRAINED)
            await self._nobody.wait()

    async def stop(self) -> None:
        """Send everybody away at once and stop listening. May be called any number of times."""
        await self.drain(0)
        if self._runner is not None:
            await self._runner.cleanup()

    #
    # requests
    #

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse names of others, and let no browser guess what an answer is."""
        connection = _connection_of(request)
        try:
            if self._local_only and not is_local_host(
                request.headers.get("Host"), self._settings.allowed_origins
            ):
                reason = "without a key, this server answers to names of its own machine only"
                return self._refuse(request, Refusal("host", 403, reason))
            response = await handler(request)
        finally:
            if connection is not None:
                connection.wait()
        return response

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        is_page = self._static is not None and request.path not in API_PATHS
        policy = "frame-ancestors 'self'" if is_page else "default-src 'none'"
        response.headers.setdefault("Content-Security-Policy", policy)

    def _health(self) -> BackendHealth:
        if isinstance(self._backend, ReportsHealth):
            return self._backend.health()
        waiting_secs = [call.waiting_secs for call in self._calls]
        if waiting_secs and min(waiting_secs) > STUCK_SECS:
            reason = f"no session has answered for {min(waiting_secs):.1f} s"
            return BackendHealth(False, reason, max(waiting_secs), stuck=True)
        return BackendHealth(True)

    async def _handle_health(self, request: web.Request) -> web.Response:
        health = self._health()
        if not health.ok:
            status = "stuck" if health.stuck else "failed"
        else:
            status = "draining" if self._draining else "ok"
        state = {"status": status, "slots": self._slots, "slots_used": self._sessions_open}
        if health.reason:
            state["reason"] = health.reason
        return web.json_response(state, status=200 if status == "ok" else 503)

    async def _handle_metrics(self, request: web.Request) -> web.Response:
        health = self._health()
        text = self.metrics.render(
            slots=self._slots,
            used=self._sessions_open,
            lag_secs=max([health.lag_secs, *(call.lag_secs for call in self._calls)]),
            draining=self._draining,
            healthy=health.ok,
        )
        return web.Response(text=text, headers={"Content-Type": CONTENT_TYPE})

    async def _handle_chat(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = self._check(request)
            with self._counted(request.remote or ""):
                session = await self._open_while_connected(request, asked)
                try:
                    return await self._serve(request, session, asked)
                finally:
                    await session.close()
        except Refusal as refusal:
            return self._refuse(request, refusal)

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """Count a caller, from the moment when a slot is asked for."""
        self._sessions_open += 1
        self._callers[peer] += 1
        self._nobody.clear()
        try:
            yield
        finally:
            self._sessions_open -= 1
            self._callers -= Counter([peer])
            if self._sessions_open == 0:
                self._nobody.set()

    async def _open_while_connected(
        self, request: web.Request, asked: protocol.SessionRequest
    ) -> DuplexSession:
        """Open a session, which prompts can make slow; a caller who hangs up frees its slot."""
        connection = _connection_of(request)
        if connection is not None:
            connection.begin_call()
        opening = asyncio.ensure_future(self._open(asked))
        try:
            while not (await asyncio.wait([opening], timeout=HUNG_UP_SECS))[0]:
                if request.transport is None or request.transport.is_closing():
                    raise Refusal("lost", 400, "the caller hung up before its session was ready")
            return opening.result()
        finally:
            if not opening.done():
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)

    async def _serve(
        self, request: web.Request, session: DuplexSession, asked: protocol.SessionRequest
    ) -> web.StreamResponse:
        settings = self._settings
        socket = web.WebSocketResponse(
            timeout=settings.close_secs,
            autoping=False,
            compress=False,
            max_msg_size=protocol.MAX_MESSAGE_BYTES + 1,
            writer_limit=16 * 1024,
        )
        await socket.prepare(request)
        self.metrics.sessions += 1
        call = Call(socket, request, session, asked, settings, self.metrics, self._clock)
        self._calls.add(call)
        if self._sending_away:
            call.stop(DRAINED)
        elif self._draining:  # It was let in just before.
            await call.warn(max(0.0, self._drained_at_secs - time.monotonic()))
        try:
            record = await call.run()
        finally:
            self._calls.discard(call)
        self.metrics.ended[record.ending] += 1
        self._log.call(record)
        return socket

    #
    # admission
    #

    def _check(self, request: web.Request) -> protocol.SessionRequest:
        """Decide what can be decided without a slot, the cheapest first."""
        settings = self._settings
        health = self._health()
        if not health.ok:
            kind = "stuck" if health.stuck else "failed"
            raise Refusal(kind, 503, health.reason, {"Retry-After": str(settings.retry_secs)})
        if self._draining:
            after = {"Retry-After": str(max(1, math.ceil(self._drain_secs)))}
            raise Refusal("draining", 503, "the server is shutting down", after)
        if not is_allowed_origin(
            request.headers.get("Origin"),
            request.headers.get("Host", ""),
            settings.allowed_origins,
        ):
            raise Refusal("origin", 403, "pages of this origin may not call this server")
        if not has_key(request.headers, request.query, settings.api_keys):
            reason = "an API key is needed, and a valid one was not shown"
            raise Refusal("key", 401, reason, {"WWW-Authenticate": "Bearer"})
        try:
            asked = protocol.parse_query(request.query)
        except protocol.WireError as e:
            raise Refusal("parameters", 400, str(e)) from e
        most = settings.max_calls_per_address
        if most is not None and self._callers[request.remote or ""] >= most:
            after = {"Retry-After": str(settings.retry_secs)}
            raise Refusal("address", 429, f"{most} calls of this address are open already", after)
        if asked.audio_format == "opus" and not has_opus():
            raise Refusal("parameters", 400, "this server has no Opus: ask for format=pcm")
        if not web.WebSocketResponse().can_prepare(request):
            raise Refusal(
                "upgrade", 426, "this address is for WebSockets", {"Upgrade": "websocket"}
            )
        most_used = request.headers.get(protocol.MOST_USED, "")
        if most_used.isdecimal() and self._sessions_open > int(most_used[:9]):
            reason = f"{self._sessions_open} calls are here, more than the caller was told"
            raise Refusal(protocol.FULLER, 503, reason, {"Retry-After": "0"})
        limit_secs = settings.max_session_secs
        if limit_secs is not None:
            max_secs = min(limit_secs, asked.config.max_secs or limit_secs)
            config = asked.config.model_copy(update={"max_secs": max_secs})
            asked = replace(asked, config=config)
        return asked

    async def _open(self, asked: protocol.SessionRequest) -> DuplexSession:
        """Take a slot before the upgrade, so that a full server can still say so in HTTP."""
        try:
            return await self._open_with_voice(asked.config)
        except InvalidPrompt as e:
            raise Refusal("prompt", 400, str(e)) from e
        except AtCapacity as e:
            after = {"Retry-After": str(self._settings.retry_secs)}
            raise Refusal("full", 503, str(e), after) from e
        except DuplexError as e:
            logger.error(f"No session could be opened: {e}")
            after = {"Retry-After": str(self._settings.retry_secs)}
            raise Refusal("failed", 503, str(e), after) from e

    async def _open_with_voice(self, config: SessionConfig) -> DuplexSession:
        """Open a session; some clients always name a voice, which may be another server's."""
        try:
            return await self._backend.open(config)
        except InvalidPrompt:
            voice = self._settings.default_voice
            if voice is None or not config.voice_prompt or config.voice_prompt == voice:
                raise
            other = config.model_copy(update={"voice_prompt": voice or None})
            return await self._backend.open(other)

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        self.metrics.refused[refusal.kind] += 1
        self._log.refusal(request.remote or "unknown", refusal.kind, refusal.status, refusal.reason)
        return web.json_response(
            {"error": refusal.kind, "reason": refusal.reason},
            status=refusal.status,
            headers=refusal.headers,
        )


class _Site(web.BaseSite):
    """A socket that is listened on, with an eye on who connects."""

    def __init__(
        self,
        runner: web.AppRunner,
        listener: sockets.socket,
        ssl_context: ssl.SSLContext | None,
        connections: Connections,
    ):
        super().__init__(runner, ssl_context=ssl_context, backlog=BACKLOG)
        self._listener = listener
        self._connections = connections

    @property
    def name(self) -> str:
        return str(self._listener.getsockname())

    async def start(self) -> None:
        await super().start()
        handlers = self._runner.server
        assert handlers is not None
        # A handshake of TLS has the same deadline as the request that follows it.
        secs = self._connections.request_secs if self._ssl_context is not None else None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(handlers(), self._connections),
            sock=self._listener,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=secs,
        )


def _connection_of(request: web.Request) -> Connection | None:
    transport = request.transport
    below = None if transport is None else transport.get_protocol()
    return below if isinstance(below, Connection) else None


async def _redirect_to_index(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/index.html")
