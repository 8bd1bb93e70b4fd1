"""A headless Chromium, driven over its DevTools protocol: no driver to install."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the path of a Chromium: ``$CHROMIUM``, or one on the path."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page, and what it asked the network for."""

    def __init__(self, socket, process: asyncio.subprocess.Process):
        self._socket = socket
        self.process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self.requested: list[str] = []
        self.console: list[str] = []
        self.listeners: dict[str, Callable[[dict], None]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self):
        with suppress(ConnectionClosed):
            await self._read_messages()

    async def _read_messages(self):
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if not answer.done():
                    answer.set_result(message)
            elif message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded":
                self.console.append(message["params"]["entry"]["text"])
            elif listener := self.listeners.get(message["method"]):
                listener(message["params"])

    async def call(self, method: str, **params) -> dict:
        """Call a DevTools method."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        message = await answer
        assert "error" not in message, message["error"]
        return message["result"]

    async def js(self, expression: str):
        """Evaluate an expression, with the user's activation."""
        answer = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, timeout_secs: float = 20):
        """Wait for an expression to be true, and return its value."""
        deadline = time.monotonic() + timeout_secs
        while not (value := await self.js(expression)):
            assert time.monotonic() < deadline, f"not in {timeout_secs} s: {expression}"
            await asyncio.sleep(0.05)
        return value

    async def click(self, selector: str):
        """Click the middle of an element with the mouse."""
        x, y = await self.js(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def press(self, key: str):
        """Press and release a key."""
        keys = {"Tab": 9, "Enter": 13}
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        code = keys.get(key, ord(key.upper()) if len(key) == 1 else 0)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    async def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False):
        """Go to an address."""
        for domain in ("Network", "Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.show(width=width, height=height, dark=dark)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def show(self, *, width: int, height: int, dark: bool):
        """Set the size of the window and the color scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path | str):
        """Write what is seen as a PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(Path(path).write_bytes, base64.b64decode(answer["data"]))

    async def close(self):
        """Let go of the page."""
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader


@asynccontextmanager
async def chromium(profile: Path, microphone: Path | None = None, *, allow: bool = True):
    """Run a Chromium, and yield its first tab.

    Args:
        profile: An empty folder for its profile.
        microphone: A WAV that it plays once as its microphone.
        allow: Whether pages may use the microphone; else the browser refuses.
    """
    binary = find_chromium()
    assert binary
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-component-update",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream" if allow else "--deny-permission-prompts",
    ]
    if microphone:
        arguments.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    process = await asyncio.create_subprocess_exec(
        *(binary, *arguments, "about:blank"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = await asyncio.to_thread(_page_address, profile)
        async with connect(address, max_size=None) as socket:
            tab = Tab(socket, process)
            yield tab
            await tab.close()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _page_address(profile: Path) -> str:
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if port_file.exists() and "\n" in port_file.read_text():
            for target in _targets(port_file.read_text().split("\n")[0]):
                if target["type"] == "page":
                    return target["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise TimeoutError("Chromium did not open its DevTools port")


def _targets(port: str) -> list[dict]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
        return json.load(answer)
