"""What RTVI clients are told, in a real pipeline with Pipecat's own RTVI processor and observer."""

import numpy as np
import pytest
from pipecat.frames.frames import OutputTransportMessageUrgentFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frameworks.rtvi import RTVIProcessor

from pipecat_duplex.scripted import WORD_STEPS, Script, ScriptedBackend
from pipecat_duplex.service.rtvi import DuplexRTVIFeed
from pipecat_duplex.session import STEP_SECS
from tests.pipeline import Conversation, converse, silence, speech

STORY = "once there was a small cat who wanted to see the sea she walked for three days"


class RTVIMessages(BaseObserver):
    """Notes every message on its way to the client, once."""

    def __init__(self):
        super().__init__()
        self._seen: set[int] = set()
        self.messages: list[dict] = []

    async def on_push_frame(self, data: FramePushed):
        frame = data.frame
        if isinstance(frame, OutputTransportMessageUrgentFrame) and frame.id not in self._seen:
            self._seen.add(frame.id)
            self.messages.append(frame.message)

    def of(self, kind: str) -> list[dict]:
        """Return our own messages of a type."""
        return [
            message["data"]
            for message in self.messages
            if message["type"] == "server-message" and message["data"]["type"] == kind
        ]

    def order(self) -> list[str]:
        """Return the types of all messages, ours by their own."""
        return [
            message["data"]["type"] if message["type"] == "server-message" else message["type"]
            for message in self.messages
        ]


async def tell(script: Script, audio: np.ndarray) -> tuple[RTVIMessages, Conversation]:
    rtvi = RTVIMessages()
    conversation = await converse(
        ScriptedBackend(script), audio, observers=[rtvi], processors=[DuplexRTVIFeed()]
    )
    return rtvi, conversation


class StockConsole:
    """What a stock client shows of the agent's words.

    The rules are those of client-react's ``conversationActions.ts`` for protocol 2: a message that
    is new or will not be spoken adds a part; a completed one marks the part of its segment.
    """

    def __init__(self, rtvi: RTVIMessages):
        self.parts: list[str] = []
        self.spoken: list[str] = []
        segments: dict[int, str] = {}
        for message in rtvi.messages:
            if message["type"] != "bot-output":
                continue
            data = message["data"]
            if not data.get("will_be_spoken") or data["spoken_status"] == "new":
                assert data["aggregated_by"] == "sentence"
                self.parts.append(data["text"])
                segments[data["segment_id"]] = data["text"]
            else:
                assert data["spoken_status"] == "completed"
                assert data["spoken_progress"]["remaining_text"] == ""
                assert data["spoken_progress"]["accumulated_text"] == segments[data["segment_id"]]
                self.spoken.append(data["text"])


async def test_the_stock_console_shows_each_word_once_and_as_spoken():
    rtvi, conversation = await tell(Script(opening=STORY, step_secs=0), silence(7))
    console = StockConsole(rtvi)
    assert console.parts == STORY.split()
    assert console.spoken == console.parts
    assert "".join(m["data"]["text"] for m in rtvi.messages if m["type"] == "bot-llm-text") == STORY
    assert conversation.assistant_words() == [STORY]


async def test_the_stock_console_shows_what_was_heard_before_an_interruption():
    audio = np.concatenate([silence(1), speech("question"), silence(2)])
    rtvi, conversation = await tell(Script(opening=STORY, yield_steps=8, step_secs=0), audio)
    order = rtvi.order()
    assert {"user-started-speaking", "bot-interrupted", "bot-stopped-speaking"} <= set(order)
    console = StockConsole(rtvi)
    assert console.parts == console.spoken
    assert conversation.assistant_words() == [" ".join(console.parts)]


async def test_a_client_of_the_first_protocol_is_told_words(monkeypatch):
    monkeypatch.setattr(RTVIProcessor, "client_version", property(lambda self: [1, 4, 0]))
    rtvi, _ = await tell(Script(opening="hello there", step_secs=0), silence(3))
    output = [m["data"] for m in rtvi.messages if m["type"] == "bot-output"]
    spoken = [data["text"].strip() for data in output if data["spoken"]]
    assert spoken == [data["text"] for data in output if not data["spoken"]] == ["hello", "there"]


async def test_monologue():
    rtvi, _ = await tell(Script(opening="hello there", step_secs=0), silence(3))
    pieces = rtvi.of("duplex-monologue")
    assert [piece["text"] for piece in pieces] == [" hello", " there"]
    assert [piece["step_index"] for piece in pieces] == [5, 5 + WORD_STEPS]
    assert pieces[0]["time_secs"] == pytest.approx(6 * STEP_SECS)
    assert pieces[0]["utterance_id"] is None
    order = rtvi.order()
    assert order.index("bot-llm-started") < order.index("duplex-monologue")
    assert "bot-llm-stopped" in order


async def test_yield():
    audio = np.concatenate([silence(1), speech("question"), silence(2)])
    rtvi, conversation = await tell(Script(opening=STORY, yield_steps=8, step_secs=0), audio)
    [event] = [args[0] for name, *args in conversation.events if name == "on_yield"]
    [message] = rtvi.of("duplex-yield")
    assert message["delay_secs"] == event.delay_secs
    assert message["time_secs"] == event.time_secs
    assert STORY.startswith(message["text"])
    # Whoever shows captions knows of the yield before the next utterance begins.
    order = rtvi.order()
    assert "bot-interrupted" in order
    assert (
        "bot-llm-started" not in order[order.index("bot-interrupted") : order.index("duplex-yield")]
    )


async def test_backchannel():
    audio = np.concatenate([silence(1), speech("question")[:16_000], silence(4)])
    rtvi, conversation = await tell(Script(opening=STORY, yield_steps=None, step_secs=0), audio)
    [event] = [args[0] for name, *args in conversation.events if name == "on_backchannel"]
    [message] = rtvi.of("duplex-backchannel")
    assert message["duration_secs"] == event.duration_secs
    assert message["time_secs"] == event.time_secs
    assert not rtvi.of("duplex-yield")


async def test_metrics():
    rtvi, _ = await tell(Script(step_secs=0), silence(4))
    reports = rtvi.of("duplex-metrics")
    assert len(reports) == 4
    assert {"lag_secs", "compute_secs", "dropped_output_steps"} <= reports[0].keys()


async def test_bytes_of_a_character_wait_for_each_other():
    feed = DuplexRTVIFeed()
    pieces = ["▁caf", "<0xC3>", "<0xA9>", "▁ok"]
    assert [feed.decode(piece) for piece in pieces] == [" caf", "", "é", " ok"]
