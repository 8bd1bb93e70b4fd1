"""A call with the embedded model whose server is killed while the agent counts."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pipecat.frames.frames import ErrorFrame, Frame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_duplex import DuplexLLMService, MonologueTextFrame
from pipecat_duplex.remote.discovery import ServerAddress
from pipecat_duplex.remote.load import ask_loads
from tests.pipeline import converse, silence
from tests.server.processes import Process, started

NUMBERS = "one two three four five six seven eight nine ten".split()
KILLED_AT = "four"
GREEDY = DuplexLLMService.Settings(text_temperature=0, audio_temperature=0)


class Killer(FrameProcessor):
    """Kills the server of the call at a word of the agent; notes when each word came."""

    def __init__(self, servers: dict[str, Process]):
        super().__init__()
        self._servers = servers
        self.killed: Process | None = None
        self.times_secs: dict[str, float] = {}

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, MonologueTextFrame):
            self.times_secs[frame.text] = time.monotonic()
            if frame.text == f"▁{KILLED_AT}" and self.killed is None:
                loads = await ask_loads({url: ServerAddress(url) for url in self._servers}, None)
                (url,) = [url for url, load in loads.items() if load.used]
                self.killed = self._servers[url]
                self.killed.signal(signal.SIGKILL)
        await self.push_frame(frame, direction)


@pytest.mark.slow
async def test_it_counts_on_at_the_other_server() -> None:
    request, rate_hz = soundfile.read(Path(__file__).parent / "count_to_ten.wav", dtype="float32")
    # How long it counts, and the time without a server.
    audio = np.concatenate([silence(0.5), request, silence(7)])
    serve = ("-c", "from pipecat_duplex.cli import main; main()", "serve", "--port", "0")
    async with started(*serve) as first, started(*serve) as second:
        servers = {
            (await server.wait_for_line(r"ws://[\w.]+:\d+[\w/]*"))[0]: server
            for server in (first, second)
        }
        killer = Killer(servers)
        conversation = await converse(
            None,
            audio,
            rate_hz=rate_hz,
            realtime=True,
            url=list(servers),
            settings=GREEDY,
            processors=[killer],
        )
        assert killer.killed is not None
        assert await killer.killed.wait() == -signal.SIGKILL
        other = second if killer.killed is first else first
        served = await other.wait_for_line(r"session .* (\d+) steps in pcm", 10)
    # After a while of silence it may say more, of its own.
    counted = len(NUMBERS)
    pieces = [frame.text for frame in conversation.near.of(MonologueTextFrame)]
    words = "".join(pieces).replace("▁", " ").split()
    assert words[:counted] == NUMBERS
    # One conversation: the bot hears of no error, and of no other session.
    assert not conversation.near_user.of(ErrorFrame)
    assert conversation.event_names().count("on_session_started") == 1
    (ending,) = [event for event in conversation.events if event[0] == "on_session_ended"]
    assert ending[2] is None  # the pipeline ended it, not a failure
    assert " ".join(conversation.assistant_words()).split()[:counted] == NUMBERS
    # The move can be shorter than the time from one number to the next.
    gaps_secs = np.diff(list(killer.times_secs.values())[:counted])
    assert gaps_secs.max() < 10
    # What was left was counted by the other server.
    assert 0 < int(served[1]) < conversation.service.step_count
