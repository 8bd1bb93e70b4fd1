"""The server: who is let in, and what is told about it."""

import asyncio
import math
import ssl
from dataclasses import replace

from aiohttp import WSCloseCode, web
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.protocol.opus import has_opus
from pipecat_duplex.server.access import has_key, is_allowed_origin
from pipecat_duplex.server.call import Call, Ending
from pipecat_duplex.server.call_log import log_call
from pipecat_duplex.server.metrics import CONTENT_TYPE, Metrics
from pipecat_duplex.server.settings import ServerSettings
from pipecat_duplex.session import (
    AtCapacity,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    InvalidPrompt,
)

DRAINED = Ending(
    "drained", WSCloseCode.TRY_AGAIN_LATER, "the server is shutting down: please call again"
)


MAX_LINE_BYTES = 128 * 1024
"""Of a request: a role of 8,000 characters, each of up to 12 bytes in an address, and the rest."""


class Refusal(Exception):
    """A caller is not let in.

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
        self, backend: DuplexBackend, *, slots: int, settings: ServerSettings | None = None
    ):
        """Initialize.

        Args:
            backend: Where sessions come from. It is not closed by the server.
            slots: Sessions that it has room for, for the metrics; the backend itself says when it
                is full.
            settings: What callers may do.
        """
        self.metrics = Metrics()
        self._backend = backend
        self._slots = slots
        self._settings = settings or ServerSettings()
        self._calls: set[Call] = set()
        self._sessions_open = 0
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._draining = False
        self._drain_secs = 0.0
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
        """Return the web application, for whoever wants to serve it in their own way."""
        app = web.Application()
        app.router.add_get("/api/chat", self._handle_chat)
        app.router.add_get("/health", self._handle_health)
        app.router.add_get("/metrics", self._handle_metrics)
        return app

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> None:
        """Listen.

        Args:
            host: The address.
            port: The port; 0 takes a free one.
            ssl_context: For TLS.

        Raises:
            DuplexError: The port is taken, or there is no such address.
        """
        runner = web.AppRunner(
            self.make_app(),
            access_log=None,
            shutdown_timeout=1.0,
            max_line_size=MAX_LINE_BYTES,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=ssl_context).start()
        except (OSError, OverflowError) as e:
            await runner.cleanup()
            raise DuplexError(f"cannot listen on {host}, port {port}: {e}") from e
        self._runner = runner

    async def drain(self, timeout_secs: float) -> None:
        """Refuse new callers, tell those who are there, and wait until they have gone.

        Those who said that they can go on elsewhere are sent away at once.

        Args:
            timeout_secs: Whoever is there after so long is sent away with close code 1013.
        """
        self._draining = True
        self._drain_secs = timeout_secs
        for call in self._calls:
            if call.moves:
                call.stop(DRAINED)
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

    async def _handle_health(self, request: web.Request) -> web.Response:
        state = {
            "status": "draining" if self._draining else "ok",
            "slots": self._slots,
            "slots_used": self._sessions_open,
        }
        return web.json_response(state, status=503 if self._draining else 200)

    async def _handle_metrics(self, request: web.Request) -> web.Response:
        text = self.metrics.render(
            slots=self._slots,
            used=self._sessions_open,
            lag_secs=max((call.lag_secs for call in self._calls), default=0.0),
            draining=self._draining,
        )
        return web.Response(text=text, headers={"Content-Type": CONTENT_TYPE})

    async def _handle_chat(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = self._check(request)
            session = await self._open(asked)
        except Refusal as refusal:
            return self._refuse(request, refusal)
        self._sessions_open += 1
        self._nobody.clear()
        try:
            return await self._serve(request, session, asked)
        finally:
            await session.close()
            self._sessions_open -= 1
            if self._sessions_open == 0:
                self._nobody.set()

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
        call = Call(socket, request, session, asked, settings, self.metrics)
        self._calls.add(call)
        if self._sending_away:
            call.stop(DRAINED)
        try:
            record = await call.run()
        finally:
            self._calls.discard(call)
        self.metrics.ended[record.ending] += 1
        log_call(record)
        return socket

    #
    # admission
    #

    def _check(self, request: web.Request) -> protocol.SessionRequest:
        """Decide what can be decided without a slot, the cheapest first."""
        settings = self._settings
        if self._draining:
            after = {"Retry-After": str(max(1, math.ceil(self._drain_secs)))}
            raise Refusal("draining", 503, "the server is shutting down", after)
        if not is_allowed_origin(
            request.headers.get("Origin"), request.host, settings.allowed_origins
        ):
            raise Refusal("origin", 403, "pages of this origin may not call this server")
        if not has_key(request.headers, request.query, settings.api_keys):
            reason = "an API key is needed, and a valid one was not shown"
            raise Refusal("key", 401, reason, {"WWW-Authenticate": "Bearer"})
        try:
            asked = protocol.parse_query(request.query)
        except protocol.WireError as e:
            raise Refusal("parameters", 400, str(e)) from e
        if asked.audio_format == "opus" and not has_opus():
            raise Refusal("parameters", 400, "this server has no Opus: ask for format=pcm")
        if not web.WebSocketResponse().can_prepare(request):
            raise Refusal(
                "upgrade", 426, "this address is for WebSockets", {"Upgrade": "websocket"}
            )
        limit_secs = settings.max_session_secs
        if limit_secs is not None:
            max_secs = min(limit_secs, asked.config.max_secs or limit_secs)
            config = asked.config.model_copy(update={"max_secs": max_secs})
            asked = replace(asked, config=config)
        return asked

    async def _open(self, asked: protocol.SessionRequest) -> DuplexSession:
        """Take a slot before the upgrade, so that a full server can still say so in HTTP."""
        try:
            return await self._backend.open(asked.config)
        except InvalidPrompt as e:
            raise Refusal("prompt", 400, str(e)) from e
        except AtCapacity as e:
            after = {"Retry-After": str(self._settings.retry_secs)}
            raise Refusal("full", 503, str(e), after) from e
        except DuplexError as e:
            logger.error(f"No session could be opened: {e}")
            after = {"Retry-After": str(self._settings.retry_secs)}
            raise Refusal("failed", 503, str(e), after) from e

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        self.metrics.refused[refusal.kind] += 1
        logger.debug(f"{request.remote} was refused: {refusal.reason}")
        return web.json_response(
            {"error": refusal.kind, "reason": refusal.reason},
            status=refusal.status,
            headers=refusal.headers,
        )
