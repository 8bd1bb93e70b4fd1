"""The talking page in a real Chromium, with a recording as its microphone."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SessionConfig
from tests.chromium import Tab, chromium, find_chromium
from tests.pipeline import silence, speech
from tests.stalls import by_the_clock

pytest.importorskip("aiortc", reason="needs the webrtc extra")
uvicorn = pytest.importorskip("uvicorn", reason="needs the webrtc extra")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium found: install one (Debian: apt-get install chromium) or set CHROMIUM",
    ),
]

# Long enough for a slow machine to see what happens in the middle.
STORY = (
    "once there was a small cat who wanted to see the sea she walked for three days and at last "
    "she saw the water then she went home and slept and then "
) * 3
REPLY = "yes and the kitchen is on the ground floor " * 12
RATE_HZ = 48_000

# The server of run_talk in a process of its own, that can be killed.
SERVER = """
from pipecat_duplex.commands.talk.talk import run_talk
from pipecat_duplex.scripted import Script, ScriptedBackend
run_talk(checkpoint="scripted", host="127.0.0.1", port={port}, slots=1,
         backend=ScriptedBackend(Script(opening="hello there")))
"""


@dataclass
class Talk:
    """A running app.

    Parameters:
        url: Its address.
        backend: The backend that it was given.
        reception: Its reception.
    """

    url: str
    backend: ScriptedBackend
    reception: object


@asynccontextmanager
async def serving(backend: ScriptedBackend):
    """Serve the app of run_talk in this process."""
    from pipecat_duplex.commands.talk.app import create_app

    app = create_app(backend, checkpoint="scripted", local_only=True)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        url = f"http://localhost:{listener.getsockname()[1]}/"
        yield Talk(url, backend, app.state.reception)
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """Six seconds of silence, in which the agent begins, and then somebody who talks over it."""
    path = tmp_path / "microphone.wav"
    pcm = [silence(6, RATE_HZ), speech("barge_in", RATE_HZ), silence(60, RATE_HZ)]
    soundfile.write(path, np.concatenate(pcm), RATE_HZ, subtype="PCM_16")
    return path


async def until(condition, timeout_secs: float = 20):
    for _ in range(round(timeout_secs / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not in {timeout_secs} s")


def words(tab: Tab):
    return tab.js("document.querySelector('#log').textContent.split(/\\s+/).length")


def alert(tab: Tab, text: str, timeout_secs: float = 20):
    return tab.until(
        f"!document.querySelector('#alert').hidden"
        f" && document.querySelector('#alert').textContent.includes({text!r})",
        timeout_secs,
    )


LANES = """(() => {
    const { left, top, width, height } = document.querySelector("#lanes").getBoundingClientRect();
    return [left, top, width, height].map(Math.round);
})()"""
WORDS_HEIGHT = 16


def lanes_seen(screenshot: Path, place: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what a screenshot shows of the agent's voice, and of its words under it."""
    left, top, width, height = place
    canvas = np.asarray(Image.open(screenshot).convert("RGB"))[
        top : top + height, left : left + width
    ]
    middle = (height - WORDS_HEIGHT) // 2
    return canvas[middle + 3 : -WORDS_HEIGHT], canvas[-WORDS_HEIGHT:]


def ink(part: np.ndarray) -> int:
    """Count the pixels that are not background."""
    colors, counts = np.unique(part.reshape(-1, 3), axis=0, return_counts=True)
    return int((part != colors[counts.argmax()]).any(axis=-1).sum())


# Whoever has been seen to speak, however briefly.
SPOKE = """
window.spoke = {};
for (const who of ["agent", "user"]) {
    const lane = document.getElementById(who);
    const note = () => { if (lane.dataset.speaking === "true") window.spoke[who] = true; };
    new MutationObserver(note).observe(lane, { attributeFilter: ["data-speaking"] });
}
const speaker = document.querySelector("#speaker");
speaker.addEventListener("volumechange", () => { window.hushed ||= speaker.muted; });
"""


def state(tab: Tab, name: str):
    return tab.until(f"document.body.dataset.state === {name!r}")


@pytest.mark.slow
@by_the_clock
async def test_a_conversation(tmp_path: Path, microphone: Path):
    script = Script(opening=STORY, replies=[REPLY], yield_steps=8)
    async with (
        serving(ScriptedBackend(script)) as talk,
        chromium(tmp_path / "profile", microphone) as tab,
    ):
        await tab.open(talk.url)
        await tab.js(SPOKE)
        # The echo canceller would treat the recording as the agent's echo.
        await tab.click("#headphones")
        await tab.click("#connect")
        await state(tab, "live")

        # The agent is heard, read and seen to speak.
        await tab.until("duplexPage.talk().levels.agent?.peak > 0.1")
        await tab.until("document.querySelector('.said.live')?.textContent.includes('there was a')")
        await tab.until("window.spoke.agent")
        await tab.until("document.querySelector('#agent .meter').ariaValueNow > 20")
        await tab.until("/^\\d+ ms$/.test(document.querySelector('#lag').textContent)")
        await tab.until("/^\\d+ ms$/.test(document.querySelector('#step').textContent)")

        # Talked over, it yields: its caption is cut short, and the time line marks where.
        await tab.until("window.spoke.user")
        await tab.until("document.querySelector('.said.yielded .cut + .mark.yield') !== null")
        await tab.until("document.querySelector('#yields').textContent > 0")
        await tab.until("duplexPage.lanes.marks.some((mark) => mark.label === 'yield')")
        await tab.until("window.hushed")  # What the browser still holds is not heard.
        cut = await tab.js("document.querySelector('.said.yielded p').firstChild.data")
        assert STORY.startswith(cut) and cut != STORY
        assert not await tab.js("document.querySelector('.said.yielded').matches('.live')")

        await tab.until("document.querySelector('.said.live')?.textContent.includes('kitchen')")
        await tab.until("!document.querySelector('#speaker').muted")
        await tab.until("document.querySelector('#agent .meter').ariaValueNow > 20")

        # Its words stand on the time line under its voice, and both move on.
        await tab.until("duplexPage.lanes.words.length > 2")
        shown = await tab.js("duplexPage.lanes.words.map((word) => word.text)")
        assert "kitchen" in shown
        place = await tab.js(LANES)
        await tab.screenshot(tmp_path / "first.png")
        await asyncio.sleep(1)
        await tab.screenshot(tmp_path / "later.png")
        first, later = (lanes_seen(tmp_path / f"{name}.png", place) for name in ("first", "later"))
        assert all(ink(part) > 50 for part in later), [ink(part) for part in later]
        assert all((a != b).any() for a, b in zip(first, later, strict=True))

        # Muted, the agent goes on.
        await tab.press("m")
        assert await tab.js("duplexPage.talk().microphone.getAudioTracks()[0].enabled") is False
        assert await tab.js("document.querySelector('#user .doing').textContent") == "muted"
        said = await words(tab)
        await tab.until(
            f"document.querySelector('#log').textContent.split(/\\s+/).length > {said} + 5"
        )
        await tab.click("#mute")
        assert await tab.js("duplexPage.talk().microphone.getAudioTracks()[0].enabled") is True

        # Disconnected, the slot is free, for instance for the same visitor.
        [session] = talk.backend.sessions
        await tab.click("#connect")
        await state(tab, "idle")
        await until(lambda: session.closed and talk.reception.visitors == 0)
        await tab.press("Enter")  # The button has the focus.
        await state(tab, "live")
        await until(lambda: len(talk.backend.sessions) == 1 and not talk.backend.sessions[0].closed)

        # A browser that dies frees it too.
        tab.process.send_signal(signal.SIGKILL)
        await until(lambda: talk.backend.sessions[0].closed and talk.reception.visitors == 0)
        assert all(url.startswith((talk.url, "data:")) for url in tab.requested), tab.requested
        assert len(tab.requested) > 5
        assert not tab.console


@pytest.mark.slow
async def test_visitors_do_not_disturb_each_other(tmp_path: Path, microphone: Path):
    async with (
        serving(ScriptedBackend(Script(opening=STORY), slots=2)) as talk,
        chromium(tmp_path / "one", microphone) as one,
        chromium(tmp_path / "two") as two,
    ):
        for tab in (one, two):
            await tab.open(talk.url)
            await tab.click("#connect")
            await state(tab, "live")
        await two.until("document.querySelector('.said.live')?.textContent.includes('there was')")
        await one.click("#connect")
        await until(lambda: talk.reception.visitors == 1)
        said = await words(two)
        await two.until(
            f"document.querySelector('#log').textContent.split(/\\s+/).length > {said} + 5"
        )
        await state(two, "live")


@pytest.mark.slow
async def test_backchannels_are_shown(tmp_path: Path, microphone: Path):
    """The messages of a backchannel, by hand: when a detector hears one is its own affair."""
    async with (
        serving(ScriptedBackend()) as talk,
        chromium(tmp_path / "profile", microphone) as tab,
    ):
        await tab.open(talk.url)
        await tab.js("""for (const message of [
            { type: 'server-message', data: { type: 'duplex-monologue', text: ' one two' } },
            { type: 'vad-user-started-speaking' },
            { type: 'server-message', data: { type: 'duplex-monologue', text: ' three' } },
            { type: 'vad-user-stopped-speaking' },
            { type: 'server-message', data: { type: 'duplex-backchannel', duration_secs: 0.4 } },
            { type: 'server-message', data: { type: 'duplex-monologue', text: ' four' } },
        ]) duplexPage.receive(message)""")
        shown = "document.querySelector('.said.live p').textContent"
        assert await tab.js(shown) == "one twoyou, 0.4 s three four"
        assert await tab.js("document.querySelector('.mark.backchannel:not(.open)') !== null")
        assert await tab.js("document.querySelector('#backchannels').textContent") == "1"


@pytest.mark.slow
async def test_no_room(tmp_path: Path, microphone: Path):
    async with (
        serving(ScriptedBackend(slots=1)) as talk,
        chromium(tmp_path / "profile", microphone) as tab,
    ):
        guest = await talk.backend.open(SessionConfig())
        await tab.open(talk.url)
        await tab.click("#connect")
        await alert(tab, "All slots are taken.")
        await state(tab, "error")
        assert talk.reception.visitors == 0

        await guest.close()
        await tab.click("#connect")
        await state(tab, "live")
        assert await tab.js("document.querySelector('#alert').hidden")


async def test_no_microphone(tmp_path: Path):
    async with (
        serving(ScriptedBackend(slots=1)) as talk,
        chromium(tmp_path / "profile", allow=False) as tab,
    ):
        await tab.open(talk.url)
        await tab.click("#connect")
        await alert(tab, "The microphone is blocked.")
        assert not talk.backend.sessions


@pytest.mark.slow
async def test_a_session_that_fails(tmp_path: Path, microphone: Path):
    async with (
        serving(ScriptedBackend(Script(fail_step=30))) as talk,
        chromium(tmp_path / "profile", microphone) as tab,
    ):
        await tab.open(talk.url)
        await tab.click("#connect")
        await alert(tab, "the script says so")
        await until(lambda: talk.reception.visitors == 0)
        await tab.until("document.body.dataset.state !== 'live'")
        await alert(tab, "the script says so")


@pytest.fixture
async def server_process():
    """Run the server of run_talk in a process of its own, which a test can end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER.format(port=port)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    await _wait_for_port(port)
    yield process, f"http://localhost:{port}"
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


@pytest.mark.slow
async def test_a_server_that_is_gone(tmp_path: Path, microphone: Path, server_process):
    process, url = server_process
    async with chromium(tmp_path / "profile", microphone) as tab:
        await tab.open(url)
        await tab.click("#connect")
        await state(tab, "live")
        process.kill()
        await alert(tab, "The connection was lost.", timeout_secs=30)
        await tab.click("#connect")
        await alert(tab, "The server does not answer.")


@pytest.mark.slow
async def test_ctrl_c_ends_the_server(tmp_path: Path, microphone: Path, server_process):
    process, url = server_process
    async with chromium(tmp_path / "profile", microphone) as tab:
        await tab.open(url)
        await tab.click("#connect")
        await state(tab, "live")
        process.send_signal(signal.SIGINT)
        await tab.until("document.querySelector('#state').textContent === 'The agent has left'")
    async with asyncio.timeout(20):
        out, err = (text.decode() for text in await process.communicate())
    assert process.returncode == 0, err
    assert url in out and "Goodbye" in out
    assert "Traceback" not in err


async def _wait_for_port(port: int):
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return
