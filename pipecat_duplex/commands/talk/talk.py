"""``pipecat-duplex talk``: the example bot, with a page of its own to talk to it."""

import asyncio
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pipecat_duplex.server.listen import bind, is_loopback, url_of
from pipecat_duplex.session import DuplexBackend, MissingExtra

if TYPE_CHECKING:
    from pipecat_duplex.commands.talk.llm import TalkLlm


def run_talk(
    *,
    checkpoint: str,
    host: str,
    port: int,
    slots: int,
    backend: DuplexBackend | None = None,
    llm: "TalkLlm | None" = None,
) -> None:
    """Serve the talking page and its bots until Ctrl-C.

    The model is loaded once; each visitor gets a pipeline and a slot of it.

    Args:
        checkpoint: ``embedded``, a hub name or a local folder.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        slots: Conversations at a time.
        backend: Where sessions come from instead of an engine with the checkpoint. It is closed at
            the end.
        llm: The LLM that gives the words, if there is one.

    Raises:
        MissingExtra: The ``webrtc`` extra is not installed.
        DuplexError: The port is taken, or the checkpoint cannot be loaded.
    """
    _require_extra()
    if llm is not None:
        llm.check()
    console = Console()
    # Before the model is loaded: a port that is taken should not cost a minute to find out.
    listeners = bind(host, port)
    try:
        asyncio.run(_serve(console, listeners, checkpoint, slots, backend, llm))
    except KeyboardInterrupt:
        pass
    finally:
        for listener in listeners:
            listener.close()
    console.print("Goodbye.")


def _require_extra() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "aiortc") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"`talk` needs {', '.join(missing)}: pip install 'pipecat-duplex[webrtc]'"
        )


async def _serve(
    console: Console,
    listeners: list[socket.socket],
    checkpoint: str,
    slots: int,
    backend: DuplexBackend | None,
    llm: "TalkLlm | None",
) -> None:
    import uvicorn

    from pipecat_duplex.commands.talk.app import create_app
    from pipecat_duplex.commands.talk.llm import OWN

    note = None
    if backend is None:
        with console.status(f"Loading {checkpoint} ..."):
            backend, note = await _load_engine(
                checkpoint, slots, llm.engine_tts if llm is not None else OWN
            )
    app = create_app(
        backend,
        checkpoint=_public_name(checkpoint),
        note=note,
        llm=llm,
        local_only=is_loopback(listeners),
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    _announce(console, listeners[0], checkpoint, slots, note)
    try:
        await uvicorn.Server(config).serve(sockets=listeners)
    finally:
        await backend.close()


async def _load_engine(checkpoint: str, slots: int, tts: str) -> tuple[DuplexBackend, str | None]:
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(checkpoint, slots=slots, tts=tts)
    trained = engine.summary.trained
    note = None if trained else "This checkpoint has random weights: it babbles, in real time."
    return engine, note


def _public_name(checkpoint: str) -> str:
    """Of a folder the page shows the name only: where it lies is not for visitors."""
    folder = Path(checkpoint)
    return folder.resolve().name if folder.is_dir() else checkpoint


def _announce(
    console: Console, listener: socket.socket, checkpoint: str, slots: int, note: str | None
) -> None:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::", "127.0.0.1", "::1"):
        host = "localhost"
    url = url_of("http", host, port)
    room = "one conversation" if slots == 1 else f"{slots} conversations"
    console.print()
    console.print(f"  Open  [bold cyan]{url}[/]  and talk to [bold]{checkpoint}[/].")
    console.print(f"  Room for {room} at a time. Use headphones. Ctrl-C ends it.", style="dim")
    if note:
        console.print(f"  {note}", style="yellow")
    if host != "localhost":
        console.print(
            "  Browsers lend the microphone to https pages and to localhost only.", style="yellow"
        )
    console.print()
