"""The Daily bot with the real SDK and Pipecat's real transport; only the room is not there."""

import asyncio
from contextlib import suppress

import numpy as np
import pytest

pytest.importorskip("daily", reason="needs the daily extra")

from pipecat.frames.frames import InputAudioRawFrame
from pipecat.runner.types import DailyRunnerArguments
from pipecat.transports.daily.transport import DailyTransport, DailyTransportClient

from examples import daily_bot
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.pipeline import silence, speech
from tests.stalls import by_the_clock
from tests.telephony.bot import until

RATE_HZ = 24_000
STORY = "once there was a small cat who wanted to see the sea she walked for three days"
ALICE, BOB = {"id": "alice"}, {"id": "bob"}


class Room:
    """Stands for Daily's servers: what the SDK would send to them and get from them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, audio: np.ndarray):
        self.messages: list[dict] = []
        self.played_samples = 0
        self.joined = asyncio.Event()
        self.credentials: tuple | None = None
        self.left = False
        self._audio = audio
        self._begun_secs = 0.0
        self._sample = 0
        room = self

        async def join(client):
            room.credentials = client._room_url, client._token
            room._begun_secs = asyncio.get_running_loop().time()
            room.joined.set()
            return {"participants": {"local": {"id": "bot"}}}, None

        async def leave(client):
            room.left = True

        async def read(client):
            return await room._read()

        async def write(client, frame):
            room.played_samples += frame.num_frames
            await asyncio.sleep(frame.num_frames / frame.sample_rate)
            return True

        async def send(client, frame):
            room.messages.append(frame.message)

        for name, function in {
            "_join": join,
            "_leave": leave,
            "read_next_audio_frame": read,
            "write_audio_frame": write,
            "send_message": send,
        }.items():
            monkeypatch.setattr(DailyTransportClient, name, function)

    async def _read(self) -> InputAudioRawFrame:
        self._sample += RATE_HZ // 50
        due_secs = self._begun_secs + self._sample / RATE_HZ
        await asyncio.sleep(max(0.0, due_secs - asyncio.get_running_loop().time()))
        pcm = self._audio[self._sample - RATE_HZ // 50 : self._sample]
        return InputAudioRawFrame(float_to_pcm16(pcm).ljust(RATE_HZ // 25, b"\0"), RATE_HZ, 1)

    def said(self, kind: str) -> list[dict]:
        return [message for message in self.messages if message.get("type") == kind]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    backend = ScriptedBackend(Script(opening=STORY, replies=["all right"], yield_steps=8))
    monkeypatch.setattr(daily_bot, "backend", backend)
    return backend


@pytest.mark.slow
@by_the_clock
async def test_a_conversation_in_a_room(monkeypatch, scripted):
    transports: list[DailyTransport] = []
    create = daily_bot.create_transport

    def noting_create(*args):
        transports.append(create(*args))
        return transports[-1]

    monkeypatch.setattr(daily_bot, "create_transport", noting_create)
    audio = np.concatenate([silence(2, RATE_HZ), speech("barge_in", RATE_HZ)])
    room = Room(monkeypatch, audio)
    url = "https://example.daily.co/room"
    running = asyncio.create_task(daily_bot.bot(DailyRunnerArguments(room_url=url, token="t0ken")))
    try:
        await asyncio.wait_for(room.joined.wait(), 30)
        assert room.credentials == (url, "t0ken")
        [transport] = transports
        await transport._on_participant_joined(ALICE)
        await transport._on_participant_joined(BOB)
        await until(lambda: any(" right" in message["text"] for message in room.said("word")))

        # The room read the agent's words, and that it yielded.
        first = "".join(m["text"] for m in room.messages if m.get("type") == "word").strip()
        assert first.startswith("once there was")
        [yielded] = room.said("yield")
        assert STORY.startswith(yielded["text"].strip()) and yielded["delay_secs"] > 0
        kinds = [message["type"] for message in room.messages if message.get("from") == "agent"]
        assert kinds.index("word") < kinds.index("yield") < kinds.index("done")
        times = [message["time_secs"] for message in room.said("word")]
        assert times == sorted(times) and times[0] > 0
        assert room.played_samples > RATE_HZ

        # One leaves, and the agent stays; the last one leaves, and it goes.
        await transport._on_participant_left(BOB, "leftCall")
        await asyncio.sleep(0.2)
        assert not running.done()
        await transport._on_participant_left(ALICE, "leftCall")
        await asyncio.wait_for(running, 20)
        assert room.left and scripted.sessions[-1].closed
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_room_that_cannot_be_joined_ends_the_bot(monkeypatch, scripted):
    Room(monkeypatch, silence(1, RATE_HZ))

    async def refuse(client):
        return None, "the token is not valid"

    monkeypatch.setattr(DailyTransportClient, "_join", refuse)
    arguments = DailyRunnerArguments(room_url="https://example.daily.co/room", token="wrong")
    await asyncio.wait_for(daily_bot.bot(arguments), 30)
    assert all(session.closed for session in scripted.sessions)


def test_the_room_is_one_voice():
    """Several participants' own tracks would be heard one after another."""
    transport = daily_bot.create_transport("https://example.daily.co/room", None)
    assert transport._params.audio_in_user_tracks is False
