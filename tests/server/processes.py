"""Server processes that tests start, stop and kill."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """A process of ours whose output is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())
        self._more = asyncio.Event()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())
            self._more.set()
        self._more.set()

    async def wait_for_line(self, pattern: str, secs: float = 120) -> re.Match:
        """Wait until a line says something."""
        async with asyncio.timeout(secs):
            while True:
                for line in self.lines:
                    match = re.search(pattern, line)
                    if match:
                        return match
                assert not self._reading.done(), "\n".join(["it ended:", *self.lines[-20:]])
                self._more.clear()
                await self._more.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self, secs: float = 30) -> int:
        """Wait for its end, and return its exit status."""
        async with asyncio.timeout(secs):
            await self._reading
            return await self._process.wait()


@contextlib.asynccontextmanager
async def started(
    *arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run Python with these arguments; it is killed in the end."""
    settings = {"PYTHONUNBUFFERED": "1", "NO_TORCH_COMPILE": "1", **(environment or {})}
    raw = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    process = Process(raw)
    try:
        yield process
    finally:
        # A stopped process can be killed too, but not asked.
        process.signal(signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def scripted_server(opening: str, *options: str) -> AsyncIterator[tuple[Process, str]]:
    """``pipecat-duplex serve`` with a scripted agent, and its URL."""
    async with started("-m", "tests.server.serve_scripted", opening, *options) as process:
        match = await process.wait_for_line(r"ws://127\.0\.0\.1:\d+/api/chat")
        yield process, match[0]
