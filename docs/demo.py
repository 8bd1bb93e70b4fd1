"""Makes docs/demo.mp4: a conversation with the embedded model on the page of ``talk``.

Chromium opens the page, with a recording as its microphone. Its pictures and both voices become a
video. Run it in the repository's root, on a machine with ffmpeg, Chromium and the extras ``webrtc``
and ``dev``::

    python -m docs.demo
"""

import asyncio
import base64
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import soundfile

from tests.chromium import Tab, chromium

ROOT = Path(__file__).parents[1]
AUDIO = ROOT / "examples" / "audio"
EVALS = ROOT / "examples" / "evals" / "audio"
RATE_HZ = 16_000
LENGTH_SECS = 40
PICTURES_PER_SEC = 15

SAYS = [
    (5.0, AUDIO / "question.wav", None),
    (10.0, EVALS / "tell_me_a_story.wav", None),
    (14.0, AUDIO / "conversation.wav", (8.0, 8.9)),  # uh huh: the agent goes on
    (16.5, EVALS / "where_is_the_kitchen.wav", None),  # the agent yields, and answers
    (23.5, AUDIO / "conversation.wav", (4.8, 6.4)),  # a story
    (29.0, AUDIO / "conversation.wav", (10.2, 11.3)),  # stop: the agent yields
    (34.0, AUDIO / "conversation.wav", (0.2, 2.2)),
]
"""When the user begins, the recording, and which seconds of it."""

# Both voices into one recording, as the browser plays and hears them.
RECORD = """
(() => {
    const { context, microphone } = duplexPage.talk();
    const both = context.createMediaStreamDestination();
    for (const stream of [microphone, document.querySelector("#speaker").srcObject])
        context.createMediaStreamSource(stream).connect(both);
    window.recorder = new MediaRecorder(both.stream, { audioBitsPerSecond: 96000 });
    window.recorded = [];
    recorder.ondataavailable = ({ data }) => recorded.push(data);
    return new Promise((resolve) => {
        recorder.onstart = () => resolve(Date.now() / 1000);
        recorder.start();
    });
})()
"""
RECORDED = """
new Promise((resolve) => {
    recorder.onstop = () => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result.split(",")[1]);
        reader.readAsDataURL(new Blob(recorded));
    };
    recorder.stop();
})
"""


def user_audio() -> np.ndarray:
    """Return what the user says, float32 mono at ``RATE_HZ``."""
    audio = np.zeros((LENGTH_SECS + 20) * RATE_HZ, np.float32)
    for start_secs, path, part_secs in SAYS:
        pcm, rate_hz = soundfile.read(path, dtype="float32")
        assert rate_hz == RATE_HZ, path
        if part_secs:
            pcm = pcm[round(part_secs[0] * RATE_HZ) : round(part_secs[1] * RATE_HZ)]
        first = round(start_secs * RATE_HZ)
        audio[first : first + len(pcm)] += pcm
    return audio


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Run ``pipecat-duplex talk``, and yield the address of its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = "from pipecat_duplex.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", command, "talk", "--port", str(port)), stdout=subprocess.DEVNULL
    )
    try:
        await asyncio.wait_for(_wait_for(port), 60)
        yield f"http://localhost:{port}/"
    finally:
        process.terminate()
        await process.wait()


async def _wait_for(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("localhost", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


class Screencast:
    """The pictures of a page, as files with their times."""

    def __init__(self, tab: Tab, folder: Path):
        """Begin with no picture."""
        self._tab = tab
        self._folder = folder
        self._answers: set[asyncio.Task] = set()
        self.pictures: list[tuple[float, Path]] = []

    async def start(self) -> None:
        """Keep every picture from now on."""
        self._tab.listeners["Page.screencastFrame"] = self._keep
        await self._tab.call(
            "Page.startScreencast", format="jpeg", quality=90, everyNthFrame=60 // PICTURES_PER_SEC
        )

    async def stop(self) -> None:
        """Keep no more."""
        await self._tab.call("Page.stopScreencast")

    def _keep(self, frame: dict) -> None:
        path = self._folder / f"{len(self.pictures):05}.jpg"
        path.write_bytes(base64.b64decode(frame["data"]))
        self.pictures.append((frame["metadata"]["timestamp"], path))
        answer = asyncio.create_task(
            self._tab.call("Page.screencastFrameAck", sessionId=frame["sessionId"])
        )
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    def list_from(self, begin_secs: float, length_secs: float) -> str:
        """Return ffmpeg's list of the pictures, each with its duration."""
        shown = [(max(0.0, secs - begin_secs), path) for secs, path in self.pictures]
        times = [secs for secs, _ in shown[1:]] + [length_secs]
        lines = ["ffconcat version 1.0"]
        for (secs, path), until_secs in zip(shown, times, strict=True):
            if until_secs > secs:
                lines += [f"file {path.name}", f"duration {until_secs - secs:.4f}"]
        return "\n".join(lines)


def write_video(folder: Path, out: Path) -> None:
    """Write pictures and voices as a video that any browser plays."""
    command = [
        *("ffmpeg", "-y", "-loglevel", "error"),
        *("-f", "concat", "-i", folder / "pictures.txt", "-i", folder / "voices.webm"),
        *("-t", str(LENGTH_SECS), "-vf", f"fps={PICTURES_PER_SEC},format=yuv420p"),
        *("-c:v", "libx264", "-preset", "veryslow", "-crf", "27", "-tune", "animation"),
        *("-c:a", "aac", "-b:a", "80k", "-ac", "1", "-movflags", "+faststart", out),
    ]
    subprocess.run(command, check=True)


async def make(out: Path, folder: Path) -> None:
    """Hold the conversation, and write the video.

    Args:
        out: The video.
        folder: An empty folder for what it is made from.
    """
    microphone = folder / "microphone.wav"
    soundfile.write(microphone, user_audio(), RATE_HZ, subtype="PCM_16")
    async with serving() as url, chromium(folder / "profile", microphone) as tab:
        await tab.open(url, width=1120, height=720)
        await tab.click("#headphones")  # No echo canceller: the recording is no echo.
        screencast = Screencast(tab, folder)
        await screencast.start()
        await tab.click("#connect")
        await tab.until("duplexPage.talk()?.levels.agent !== undefined")
        begin_secs = await tab.js(RECORD)
        await asyncio.sleep(LENGTH_SECS + 0.5)
        voices = base64.b64decode(await tab.js(RECORDED))
        await screencast.stop()
        for name in ("yields", "backchannels", "lag"):
            print(name, await tab.js(f"document.querySelector('#{name}').textContent"))
        print(await tab.js("document.querySelector('#log').innerText"))
    (folder / "voices.webm").write_bytes(voices)
    (folder / "pictures.txt").write_text(screencast.list_from(begin_secs, LENGTH_SECS))
    write_video(folder, out)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(make(ROOT / "docs" / "demo.mp4", Path(place)))
