"""The example that people copy: its pipeline, its captions, its sample rates."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from pipecat.frames.frames import InputAudioRawFrame, StartFrame
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.runner.types import RunnerArguments, WebSocketRunnerArguments
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from examples import quickstart
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.pipeline import Speaker, silence, speech
from tests.stalls import by_the_clock

RATE_HZ = 16_000
STORY = "once there was a small cat who wanted to see the sea she walked for three days"


class Recording(BaseInputTransport):
    """Plays a recording by the clock, and hangs up."""

    def __init__(self, audio: np.ndarray, hang_up: Callable[[], Awaitable[None]]):
        super().__init__(TransportParams(audio_in_enabled=True))
        self._audio = audio
        self._hang_up = hang_up
        self.rates_hz: tuple[int, int] | None = None

    async def setup(self, setup: FrameProcessorSetup):
        await super().setup(setup)
        self.rates_hz = setup.audio_in_sample_rate, setup.audio_out_sample_rate

    async def start(self, frame: StartFrame):
        await super().start(frame)
        await self.set_transport_ready(frame)
        self.create_task(self._play())

    async def _play(self):
        samples = RATE_HZ // 50
        begun_secs = asyncio.get_running_loop().time()
        for first in range(0, len(self._audio), samples):
            due_secs = begun_secs + first / RATE_HZ
            await asyncio.sleep(max(0.0, due_secs - asyncio.get_running_loop().time()))
            pcm16 = float_to_pcm16(self._audio[first : first + samples])
            await self.push_audio_frame(InputAudioRawFrame(pcm16, RATE_HZ, 1))
        await self._hang_up()


class Room(BaseTransport):
    """A transport with a recording for its user."""

    def __init__(self, audio: np.ndarray):
        super().__init__()
        self.microphone = Recording(audio, self.hang_up)
        self.speaker = Speaker(realtime=True)
        self._register_event_handler("on_client_disconnected")

    async def hang_up(self):
        await self._call_event_handler("on_client_disconnected", None)

    def input(self) -> Recording:
        return self.microphone

    def output(self) -> Speaker:
        return self.speaker


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    backend = ScriptedBackend(Script(opening=STORY, replies=["all right"], yield_steps=8))
    monkeypatch.setattr(quickstart, "backend", backend)
    return backend


@pytest.mark.slow
@by_the_clock
async def test_captions(scripted: ScriptedBackend, capsys: pytest.CaptureFixture):
    room = Room(np.concatenate([silence(1.5), speech("barge_in"), silence(2)]))
    await quickstart.run_bot(room, RunnerArguments())
    captions = [line for line in capsys.readouterr().out.splitlines() if line]
    caption = re.fullmatch(
        r"\[ +\d+\.\d\d s\] agent: (.+)— \[yielded to you in \d\.\d\d s\]", captions[0]
    )
    assert caption, captions
    assert STORY.startswith(caption[1]) and 2 < len(caption[1].split()) < len(STORY.split())
    assert captions[-1].endswith("agent: all right")
    assert room.microphone.rates_hz == (24_000, 24_000)
    assert all(session.closed for session in scripted.sessions)
    assert room.speaker.played


async def test_a_phone_call_stays_at_8_khz(scripted: ScriptedBackend):
    room = Room(silence(0.2))
    call = WebSocketRunnerArguments(websocket=None, transport_type="twilio")
    await quickstart.run_bot(room, call)
    assert room.microphone.rates_hz == (8_000, 8_000)


async def test_one_model_for_every_conversation(monkeypatch: pytest.MonkeyPatch):
    engine = pytest.importorskip("pipecat_duplex.engine", exc_type=Exception)
    loaded = []

    async def load(checkpoint, *, slots):
        await asyncio.sleep(0)
        loaded.append((checkpoint, slots))
        return ScriptedBackend(slots=slots)

    monkeypatch.setattr(engine.Engine, "load", load)
    monkeypatch.setattr(quickstart, "backend", None)
    monkeypatch.setenv("DUPLEX_CHECKPOINT", "some/folder")
    one, other = await asyncio.gather(quickstart.shared_backend(), quickstart.shared_backend())
    assert one is other
    assert loaded == [("some/folder", 2)]


@pytest.mark.parametrize("name", ["webrtc", "daily", "twilio", "eval"])
def test_params_of_every_transport(name: str):
    if name == "daily":
        pytest.importorskip("daily", reason="needs the daily extra")
    params = quickstart.transport_params[name]()
    assert params.audio_in_enabled and params.audio_out_enabled
