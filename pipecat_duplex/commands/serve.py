"""``pipecat-duplex serve``: the model for callers elsewhere, in Moshi's protocol."""

import asyncio
import json
import signal
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loguru import logger

from pipecat_duplex.session import DuplexBackend, DuplexError

if TYPE_CHECKING:
    from loguru import Message

    from pipecat_duplex.server import ServerSettings


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
        quantize: Keeps the model's weights in fewer bits, on torch.
        voices: A folder of recordings that callers may name as the agent's voice.
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
    voices: Path | None = None


def run_serve(options: ServeOptions, backend: DuplexBackend | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C: then let running sessions finish; at the second, stop at once.

    Args:
        options: How to serve.
        backend: Where sessions come from instead of an engine with the checkpoint. It is closed at
            the end.

    Raises:
        MissingExtra: The ``server`` or the ``moshi`` extra is not installed.
        DuplexError: The port is taken, the certificate cannot be read, or the checkpoint cannot be
            loaded.
    """
    ssl_context = _make_ssl_context(options.tls_cert, options.tls_key)
    _check_address(options.host, options.port)
    sink = logger.add(
        _print_json if options.log_format == "json" else _print_text,
        level="INFO",
        format="{message}",
        filter=lambda record: "line" in record["extra"],
    )
    try:
        asyncio.run(_serve(options, ssl_context, backend))
    finally:
        logger.remove(sink)


async def _serve(
    options: ServeOptions, ssl_context: ssl.SSLContext | None, backend: DuplexBackend | None
) -> None:
    from pipecat_duplex.server import DuplexServer

    if backend is None:
        from pipecat_duplex.engine import Engine

        backend = await Engine.load(
            options.checkpoint,
            slots=options.slots,
            device=options.device,
            quantize=options.quantize,
            voices=options.voices,
        )
    server = DuplexServer(backend, slots=options.slots, settings=_make_settings(options))
    stopping = _watch_signals()
    try:
        await server.start(options.host, options.port, ssl_context)
        _log("listening", _address(options, server.port, ssl_context), slots=options.slots)
        await stopping.get()
        secs = options.drain_secs
        _log("draining", f"sessions may go on for {secs:g} s", sessions=server.sessions_open)
        draining = asyncio.create_task(server.drain(secs))
        hurry = asyncio.create_task(stopping.get())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurry):
            task.cancel()
        await asyncio.gather(draining, hurry, return_exceptions=True)
    finally:
        await server.stop()
        await backend.close()
    _log("stopped", "goodbye")


def _make_settings(options: ServeOptions) -> "ServerSettings":
    from pipecat_duplex.server import ServerSettings

    return ServerSettings(
        api_keys=options.api_keys,
        allowed_origins=options.allowed_origins,
        max_session_secs=options.max_session_secs,
    )


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


def _check_address(host: str, port: int) -> None:
    """Find out before the model is loaded, which can take a minute, whether the port is free."""
    try:
        if not 0 <= port <= 65_535:
            raise OverflowError("ports go up to 65535")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as e:
        raise DuplexError(f"cannot listen on {host}, port {port}: {e}") from e


def _watch_signals() -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, signals.put_nowait, number)
        except NotImplementedError:  # Windows: Ctrl-C ends the loop by itself
            pass
    return signals


def _address(options: ServeOptions, port: int, ssl_context: ssl.SSLContext | None) -> str:
    return f"{'ws' if ssl_context is None else 'wss'}://{options.host}:{port}/api/chat"


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
