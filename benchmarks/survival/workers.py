"""Worker processes that can be killed, and lines to them that can be cut."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

START_SECS = 120.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Line:
    """A TCP line to a worker that can be cut: then nothing passes, and nobody is told."""

    def __init__(self, port: int):
        """Initialize a whole line.

        Args:
            port: The worker's port.
        """
        self._port = port
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        """Listen, and return the address that leads to the worker."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"ws://127.0.0.1:{port}/api/chat"

    def cut(self) -> None:
        """Let nothing pass."""
        self._passes.clear()

    def mend(self) -> None:
        """Let new connections pass; those that were cut are gone."""
        for end in self._ends:
            end.transport.abort()
        self._passes.set()

    async def stop(self) -> None:
        """Stop listening."""
        self.mend()
        if self._server is not None:
            self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if not writer.is_closing():
                writer.close()


@dataclass
class Worker:
    """A ``pipecat-duplex serve`` process behind a line.

    Parameters:
        slots: Calls that it takes.
        drain_secs: How long calls may stay after SIGTERM.
        agent: ``embedded``, or ``scripted``, which takes no processor time.
        output: Where its log goes.
        has_line: Whether its line can be cut. What the line carries costs processor time.
    """

    slots: int
    drain_secs: float = 30.0
    agent: str = "embedded"
    output: str = os.devnull
    has_line: bool = True
    port: int = field(default_factory=free_port)
    url: str = ""
    steps: float = 0.0
    late_steps: float = 0.0

    def __post_init__(self):
        """Lay the line."""
        self.line = Line(self.port)
        self._process: asyncio.subprocess.Process | None = None
        self._last = (0.0, 0.0)

    async def start(self) -> None:
        """Start the process, and wait until it takes calls."""
        command = ["-c", "from pipecat_duplex.cli import main; main()", "serve", "--tts", "own"]
        if self.agent == "scripted":
            command = ["-m", "benchmarks.survival.scripted_worker"]
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--slots", str(self.slots)]
        options += ["--drain-secs", str(self.drain_secs)]
        self._last = (0.0, 0.0)
        with open(self.output, "w") as output:  # noqa: ASYNC230 (a device)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *command, *options),
                stdout=output,
                stderr=output,
                env={**os.environ, "NO_TORCH_COMPILE": "1"},
            )
        if not self.url:
            direct = f"ws://127.0.0.1:{self.port}/api/chat"
            self.url = await self.line.start() if self.has_line else direct
        async with asyncio.timeout(START_SECS):
            while await self._read("/health") is None:
                if self._process.returncode is not None:
                    raise RuntimeError("a worker ended while it started")
                await asyncio.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def cpu_secs(self) -> float:
        """Return the processor time that the process has taken, its threads' and the kernel's."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(status[11]) + int(status[12])) / os.sysconf("SC_CLK_TCK")

    async def wait(self) -> None:
        """Wait for the end of the process."""
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self.wait()
        await self.line.stop()

    async def count_steps(self) -> None:
        """Add the steps since the last count; a process that was started anew counts from 0."""
        text = await self._read("/metrics")
        if text is None:
            return
        now = tuple(
            float(line.split()[1])
            for name in ("steps_total", "late_steps_total")
            for line in text.splitlines()
            if line.startswith(f"pipecat_duplex_{name} ")
        )
        if len(now) == 2:
            self.steps += max(0.0, now[0] - self._last[0])
            self.late_steps += max(0.0, now[1] - self._last[1])
            self._last = (now[0], now[1])

    async def _read(self, path: str) -> str | None:
        timeout = aiohttp.ClientTimeout(total=1.0)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as http:
                async with http.get(f"http://127.0.0.1:{self.port}{path}") as response:
                    return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None
