"""``pipecat-duplex serve``: the model for callers elsewhere, in Moshi's protocol."""

import asyncio
import json
import os
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loguru import logger

from pipecat_duplex.commands.queued_output import QueuedStream, queued_output
from pipecat_duplex.session import (
    AtCapacity,
    BackendHealth,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    ReportsHealth,
    SessionConfig,
)

if TYPE_CHECKING:
    from loguru import Message

    from pipecat_duplex.server import ServerSettings


KEY_VARIABLE = "PIPECAT_DUPLEX_API_KEY"

GAVE_UP_CODE = 70
"""Exit code after the engine has given up, for a supervisor: start it again."""

LOOK_SECS = 0.5
"""How often the engine's health is looked at."""

STUCK_SECS = 60.0
"""A step that has hung for so long does not come back."""

CLOSE_SECS = 5.0
"""How long an engine that has given up may take to close."""

TELL_SECS = 5.0
"""How long callers are told that there is no key before the server ends."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Parameters:
        checkpoint: ``embedded``, a hub name or a local folder.
        slots: Conversations at a time.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        api_keys: Callers must show one of these. Without any, everybody may call.
        allowed_origins: Web pages that may call besides the server's own; ``*`` is all.
        tls_cert: Certificate chain (PEM), for TLS.
        tls_key: Its key (PEM).
        max_session_secs: A session ends after this much audio. ``None`` is no limit.
        drain_secs: How long running sessions may go on after SIGTERM.
        log_format: One line a session, in words or in JSON.
        device: Where the model runs, in torch's words. ``None`` is CUDA if there is a GPU.
        quantize: Keeps the model's weights in fewer bits, on torch; ``int4`` is experimental.
        long_calls: What becomes of calls longer than the model's context.
        suppress_echo: Whether the agent's own voice is kept from what the model hears.
        hear_barge_ins: Whether the checkpoint's own network for it tells the agent to yield.
        tts: Who speaks given words: ``hibari``, ``own`` (the model) or ``auto``.
        hears: A recogniser that tells callers of ours what the user says: a hub name or a folder.
        voices: A folder of recordings that callers may name as the agent's voice.
        default_voice: The voice of callers who name one that is not there: one of the folder, or
            ``""`` for the model's own. ``None`` refuses them.
        static: A folder with a web page to serve beside the API.
        max_calls_per_address: Calls of one address at a time. ``None`` is no limit.
    """

    checkpoint: str = "embedded"
    slots: int = 1
    host: str = "localhost"
    port: int = 8998
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_session_secs: float | None = None
    drain_secs: float = 30.0
    log_format: Literal["text", "json"] = "text"
    device: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    long_calls: Literal["ring", "rebuild"] = "ring"
    suppress_echo: bool = True
    hear_barge_ins: bool = True
    tts: str = "auto"
    hears: str | None = None
    voices: Path | None = None
    default_voice: str | None = None
    static: Path | None = None
    max_calls_per_address: int | None = None


def read_api_keys(given: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that callers must show one of.

    Args:
        given: Keys of the command line, which come before the variable's.
        environment: Holds one key in ``PIPECAT_DUPLEX_API_KEY``, of any characters.

    Raises:
        DuplexError: A key of the command line is empty.
        EmptyKey: The variable is there, and empty: a secret that was not filled in.
    """
    keys = tuple(key.strip() for key in given)
    if not all(keys):
        raise DuplexError("--api-key is empty: give it a key, or leave it out to let all in")
    if keys or KEY_VARIABLE not in environment:
        return keys
    key = environment[KEY_VARIABLE].strip()
    if not key:
        raise EmptyKey(f"{KEY_VARIABLE} is set and empty: give it a key, or unset it")
    return (key,)


class EmptyKey(DuplexError):
    """The key that callers should show was not filled in."""


def run_serve(options: ServeOptions, backend: DuplexBackend | None = None) -> int:
    """Serve until SIGTERM, SIGHUP or Ctrl-C: then let running sessions finish.

    At the second signal the server stops at once.

    Args:
        options: How to serve.
        backend: Where sessions come from instead of an engine with the checkpoint. It is closed at
            the end.

    Returns:
        The exit code: 0, or :data:`GAVE_UP_CODE` after the backend has given up.

    Raises:
        MissingExtra: The ``server`` or the ``moshi`` extra is not installed.
        DuplexError: The port is taken, the certificate cannot be read, or the checkpoint cannot be
            loaded.
    """
    from pipecat_duplex.server.listen import bind

    ssl_context = _make_ssl_context(options.tls_cert, options.tls_key)
    _check_static(options.static)
    _allow_many_files()
    # Before the model is loaded, which can take a minute.
    bound = bind(options.host, options.port)
    with queued_output():
        sink = logger.add(
            _print_json if options.log_format == "json" else _print_text,
            level="INFO",
            format="{message}",
            filter=lambda record: "line" in record["extra"],
            diagnose=False,
        )
        try:
            return asyncio.run(_serve(options, ssl_context, bound, backend))
        finally:
            logger.remove(sink)
            for listener in bound:
                listener.close()


def refuse_all(options: ServeOptions, problem: EmptyKey) -> None:
    """Tell callers for a moment that nobody is let in, and end with the reason.

    A server without the key that it was meant to have must let nobody in. Those who call learn that
    it is not there yet, and a supervisor starts it again.

    Raises:
        EmptyKey: Always.
    """
    from pipecat_duplex.server import DuplexServer
    from pipecat_duplex.server.listen import bind, url_of

    async def refuse() -> None:
        settings = _make_settings(replace(options, api_keys=(secrets.token_urlsafe(32),)))
        server = DuplexServer(_Nobody(), slots=0, settings=settings)
        bound = bind(options.host, options.port)
        await server.start(options.host, options.port, bound=bound)
        url = url_of("ws", options.host, server.port, "/api/chat")
        print(f"error: {problem}. Nobody is let in at {url}", file=sys.stderr, flush=True)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(TELL_SECS)
        await server.stop()

    asyncio.run(refuse())
    raise problem


class _Nobody(DuplexBackend):
    """A backend without sessions."""

    async def open(self, config: SessionConfig) -> DuplexSession:
        raise AtCapacity("there are no slots")

    async def close(self) -> None:
        pass


async def _serve(
    options: ServeOptions,
    ssl_context: ssl.SSLContext | None,
    bound: Sequence[socket.socket],
    backend: DuplexBackend | None,
) -> int:
    from pipecat_duplex.server import DuplexServer

    if backend is None:
        from pipecat_duplex.engine import Engine

        backend = await Engine.load(
            options.checkpoint,
            slots=options.slots,
            device=options.device,
            quantize=options.quantize,
            long_calls=options.long_calls,
            suppress_echo=options.suppress_echo,
            hear_barge_ins=options.hear_barge_ins,
            tts=options.tts,
            hears=options.hears,
            voices=options.voices,
        )
    server = DuplexServer(
        backend, slots=options.slots, settings=_make_settings(options), static=options.static
    )
    stopping = _watch_signals()
    failing = asyncio.create_task(_wait_for_failure(backend))
    try:
        await server.start(options.host, options.port, ssl_context, bound=bound)
        _log("listening", _address(options, server.port, ssl_context), slots=options.slots)
        if not await _first(stopping, failing):
            secs = options.drain_secs
            _log("draining", f"sessions may go on for {secs:g} s", sessions=server.sessions_open)
            draining = asyncio.create_task(server.drain(secs))
            await _first(stopping, draining)
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
    finally:
        failed = failing.done() and not failing.cancelled()
        failing.cancel()
        await server.stop()
        if failed:
            await _close_failed(backend, failing.result())
        else:
            await backend.close()
    _log("stopped", "goodbye")
    return GAVE_UP_CODE if failed else 0


async def _first(signals: asyncio.Queue[int], other: "asyncio.Future[Any]") -> bool:
    """Wait for a signal or for something else; return whether it was the other."""
    signalled = asyncio.ensure_future(signals.get())
    await asyncio.wait([signalled, other], return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    return other.done()


async def _wait_for_failure(backend: DuplexBackend) -> BackendHealth:
    """Wait until the backend has given up, or is stuck for good."""
    stuck_looks = 0
    while True:
        await asyncio.sleep(LOOK_SECS)
        health = backend.health() if isinstance(backend, ReportsHealth) else BackendHealth(True)
        stuck_looks = stuck_looks + 1 if health.stuck else 0
        if not health.ok and (not health.stuck or stuck_looks * LOOK_SECS > STUCK_SECS):
            return health


async def _close_failed(backend: DuplexBackend, health: BackendHealth) -> None:
    """Close what has failed; a step that hangs is not waited for."""
    _log("failed", health.reason, code=GAVE_UP_CODE)
    try:
        async with asyncio.timeout(CLOSE_SECS):
            await backend.close()
    except TimeoutError:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, QueuedStream):
                stream.drain()
        os._exit(GAVE_UP_CODE)


def _make_settings(options: ServeOptions) -> "ServerSettings":
    from pipecat_duplex.server import ServerSettings

    return ServerSettings(
        api_keys=options.api_keys,
        allowed_origins=options.allowed_origins,
        max_session_secs=options.max_session_secs,
        default_voice=options.default_voice,
        max_calls_per_address=options.max_calls_per_address,
    )


def _check_static(folder: Path | None) -> None:
    if folder is not None and not (folder / "index.html").is_file():
        raise DuplexError(f"{folder} is not a folder with a page: it has no index.html")


def _allow_many_files() -> None:
    """Raise the limit of open files as far as it goes: each caller is one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_ssl_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise DuplexError("TLS needs both a certificate and its key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as e:
        raise DuplexError(f"cannot use the certificate {cert} with the key {key}: {e}") from e
    return context


def _watch_signals() -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP"):  # Windows has none
        numbers.append(signal.SIGHUP)
    for number in numbers:
        try:
            loop.add_signal_handler(number, signals.put_nowait, number)
        except NotImplementedError:  # Windows: Ctrl-C ends the loop by itself
            pass
    return signals


def _address(options: ServeOptions, port: int, ssl_context: ssl.SSLContext | None) -> str:
    from pipecat_duplex.server.listen import url_of

    return url_of("ws" if ssl_context is None else "wss", options.host, port, "/api/chat")


def _log(event: str, text: str, **fields: object) -> None:
    line = {"event": event, "text": text, **fields}
    logger.bind(line=line).info("{}: {}", event, text)


def _print_text(message: "Message") -> None:
    time = message.record["time"].strftime("%Y-%m-%d %H:%M:%S")
    print(time, message.record["message"], file=sys.stdout, flush=True)


def _print_json(message: "Message") -> None:
    time = message.record["time"].isoformat(timespec="milliseconds")
    fields = {"time": time, **message.record["extra"]["line"]}
    print(json.dumps(fields, ensure_ascii=False), file=sys.stdout, flush=True)
