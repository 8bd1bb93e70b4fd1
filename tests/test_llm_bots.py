"""The examples in which an LLM gives the words, as people run them; only the room is not there."""

import os
from pathlib import Path

import numpy as np
import pytest
from pipecat.frames.frames import TranscriptionFrame, VADUserStoppedSpeakingFrame
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner.types import RunnerArguments

from harness.loopback_llm import serving_llm
from pipecat_duplex import DuplexLLMService
from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.pipeline import silence, speech
from tests.stalls import by_the_clock
from tests.test_quickstart import Room as RecordedRoom

RATE_HZ = 16_000
EXAMPLES = Path(__file__).parents[1] / "examples"


class Room(RecordedRoom):
    """A transport whose user comes at once, speaks a word, and waits for the agent to hang up."""

    def __init__(self):
        super().__init__(np.concatenate([silence(2.5), speech("barge_in", RATE_HZ), silence(20)]))
        self._register_event_handler("on_client_connected")

    async def come(self):
        await self._call_event_handler("on_client_connected", None)


class SpeechToText(FrameProcessor):
    """Hears the same whenever the user falls silent."""

    def __init__(self, text: str):
        super().__init__()
        self._text = text

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.push_frame(TranscriptionFrame(self._text, "user", "now", finalized=True))


async def run_bot(monkeypatch, name: str, said: str, replies: list) -> tuple[list[dict], list[str]]:
    """Run an example; returns what its LLM was asked, and what the agent said."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    any_llm_bot = pytest.importorskip("any_llm_bot")
    example = pytest.importorskip(name)
    room, heard = Room(), []

    def make_duplex(**settings):
        duplex = DuplexLLMService(
            backend=ScriptedBackend(Script(replies=["mine"], reply_steps=8)),
            settings=DuplexLLMService.Settings(words="given", **settings),
        )

        @duplex.event_handler("on_session_started")
        async def on_session_started(service, session_id):
            await room.come()

        @duplex.event_handler("on_said")
        async def on_said(service, said):
            heard.append(said.spoken)

        return duplex

    async def create_transport(runner_args, params):
        return room

    monkeypatch.setattr(any_llm_bot, "make_stt", lambda: SpeechToText(said))
    monkeypatch.setattr(example, "make_duplex", make_duplex)
    monkeypatch.setattr(example, "create_transport", create_transport)
    monkeypatch.setenv("LLM_MODEL", "loopback")
    async with serving_llm(replies) as (server, url):
        monkeypatch.setitem(os.environ, "LLM_URL", url)
        await example.bot(RunnerArguments())
    return server.requests, heard


@pytest.mark.slow
@by_the_clock
async def test_the_flow_is_gone_through_to_its_end(monkeypatch: pytest.MonkeyPatch):
    replies = ["which day", {"call": "choose_day", "arguments": {"day": "monday"}}, "goodbye"]
    requests, heard = await run_bot(monkeypatch, "flows_bot", "on monday", replies)
    assert heard == ["which day", "okay", "goodbye"]
    assert "Confirm" in str(requests[-1]["messages"])


@pytest.mark.slow
@by_the_clock
async def test_the_tools_look_up_and_hang_up(monkeypatch: pytest.MonkeyPatch):
    replies = [
        {"call": "look_up_order", "arguments": {"number": "seven"}},
        {"call": "hang_up"},
        "goodbye",
    ]
    requests, heard = await run_bot(monkeypatch, "tools_bot", "where is order seven", replies)
    assert heard[0] == "okay"  # The filler.
    assert "ready at the front door" in str(requests[1]["messages"])
