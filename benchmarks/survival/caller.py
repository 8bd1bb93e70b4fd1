"""A caller by the clock, in a pipeline of their own, who knows what they should hear."""

import asyncio
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pipecat.frames.frames import Frame, InputAudioRawFrame, TTSTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from benchmarks.survival.words import WordCount, compare
from pipecat_duplex import DuplexLLMService, MonologueTextFrame
from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.commands.converse.file_transport import FileOutputTransport
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.remote import RemoteFleet
from pipecat_duplex.service.frames import UnheardTextFrame
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    STEP_SECS,
    WORD_START,
)

NUMBERS = tuple("one two three four five six seven eight nine ten".split())
TOLD = " ".join(NUMBERS * 3)
REQUEST = Path(__file__).parents[2] / "tests" / "remote" / "count_to_ten.wav"
REQUEST_EVERY_SECS = 11.0
END_SECS = 15.0
MARK = re.compile(r"\[not heard: (.*?)\]")

Task = Literal["told", "count"]


@dataclass
class CallResult:
    """What became of a call.

    Parameters:
        words: What was lost and doubled.
        too_late: Words that the service left out and marked: they came too late to be heard.
        unanswered: Requests to count after which no number was heard.
        lost: Why the call was lost, if it was.
        context_is_right: Whether the context holds the words that were heard, and no others.
        silences_secs: For each move in the middle of an answer: the silence, beyond that between
            any two words.
        moves: How often it went on elsewhere.
    """

    words: WordCount = field(default_factory=WordCount)
    too_late: int = 0
    unanswered: int = 0
    lost: str | None = None
    context_is_right: bool = True
    silences_secs: list[float] = field(default_factory=list)
    moves: int = 0


class Microphone(BaseInputTransport):
    """Takes what a caller says."""

    def __init__(self):
        """Initialize."""
        super().__init__(
            TransportParams(audio_in_enabled=True, audio_in_sample_rate=SAMPLE_RATE_HZ)
        )

    async def start(self, frame):
        """Begin to take audio."""
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def hear(self, pcm: np.ndarray) -> None:
        """Take a step of the caller's audio."""
        frame = InputAudioRawFrame(float_to_pcm16(pcm), SAMPLE_RATE_HZ, num_channels=1)
        await self.push_audio_frame(frame)


def make_worker(
    microphone: BaseInputTransport,
    agent: FrameProcessor,
    loudspeaker: BaseOutputTransport,
    context: LLMContext | None = None,
) -> PipelineWorker:
    """Return a call's pipeline, with an agent between a caller's microphone and loudspeaker."""
    aggregators = LLMContextAggregatorPair(context or LLMContext())
    return PipelineWorker(
        Pipeline([microphone, aggregators.user(), agent, loudspeaker, aggregators.assistant()]),
        params=PipelineParams(
            audio_in_sample_rate=SAMPLE_RATE_HZ, audio_out_sample_rate=SAMPLE_RATE_HZ
        ),
        idle_timeout_secs=None,
        enable_rtvi=False,
    )


class Caller:
    """Lets the agent count, and listens."""

    def __init__(self, urls: Sequence[str], task: Task, noise: float = 0.0):
        """Initialize.

        Args:
            urls: The workers.
            noise: Noise on the caller's line; 1 is full scale.
            task: ``told``: the bot gives the agent words to say, without a pause; ``count``: the
                caller asks it to count to ten, again and again.
        """
        self._task: Task = task
        self._noise = (noise * np.random.default_rng(0).standard_normal(STEP_SAMPLES)).astype("f4")
        self._fleet = RemoteFleet(urls)
        settings = DuplexLLMService.Settings(text_temperature=0, audio_temperature=0)
        self._service = DuplexLLMService(backend=self._fleet, settings=settings)
        self._microphone = Microphone()
        self._context = LLMContext()
        self._pieces: list[tuple[float, str]] = []
        self._said_words: list[str] = []
        self._heard: list[str] = []
        self._told = 0
        self.began = asyncio.Event()
        self._over = asyncio.Event()
        self._requests_at_secs: list[float] = []
        self._problems: list[str] = []
        self._moved_at_secs: list[float] = []

    async def run(self, secs: float) -> CallResult:
        """Hold the call.

        Args:
            secs: How long the agent gets something to say.
        """
        loudspeaker = FileOutputTransport(self._note, realtime=True)
        worker = make_worker(self._microphone, self._service, loudspeaker, self._context)
        started = asyncio.Event()

        @worker.event_handler("on_pipeline_started")
        async def on_pipeline_started(_, frame):
            started.set()

        @self._service.event_handler("on_session_started")
        async def on_session_started(_, session_id):
            self.began.set()

        @self._service.event_handler("on_session_moving")
        async def on_session_moving(_, session_id, reason):
            self._moved_at_secs.append(asyncio.get_running_loop().time())

        @self._service.event_handler("on_session_ended")
        async def on_session_ended(_, session_id, reason):
            if reason is not None:
                self._problems.append(reason)

        @self._service.event_handler("on_said")
        async def on_said(_, said):
            self._over.set()

        async def talk():
            await started.wait()
            speaking = asyncio.create_task(self._speak(secs))
            try:
                if self._task == "told":
                    await self._tell(secs)
                else:
                    await speaking
                await asyncio.sleep(1.0)
            finally:
                speaking.cancel()
                await worker.stop_when_done()

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), talk())
        await self._fleet.close()
        return self._result()

    async def _speak(self, secs: float) -> None:
        """Speak by the clock: silence, and the requests."""
        loop = asyncio.get_running_loop()
        request = read_audio(REQUEST).pcm
        steps = -(-len(request) // STEP_SAMPLES)
        request = np.pad(request, (0, steps * STEP_SAMPLES - len(request)))
        period = round(REQUEST_EVERY_SECS / STEP_SECS)
        lead = round(1.0 / STEP_SECS)
        began_secs = loop.time()
        end_secs = math.inf if self._task == "told" else secs + END_SECS
        for index in itertools.count():
            if index * STEP_SECS > end_secs:
                return
            await asyncio.sleep(began_secs + index * STEP_SECS - loop.time())
            place = (index - lead) % period if index >= lead else period
            pcm = self._noise
            if self._task == "count" and place < steps and (index - place) * STEP_SECS < secs:
                if place == 0:
                    self._requests_at_secs.append(loop.time())
                pcm = request[place * STEP_SAMPLES : (place + 1) * STEP_SAMPLES]
            await self._microphone.hear(pcm)

    async def _tell(self, secs: float) -> None:
        """Give the agent words to say, one text after another."""
        loop = asyncio.get_running_loop()
        began_secs = loop.time()
        while loop.time() - began_secs < secs:
            self._over.clear()
            await self._service.say(TOLD)
            self._told += 1
            try:
                async with asyncio.timeout(60):
                    await self._over.wait()
            except TimeoutError:
                self._problems.append("words were not said within a minute")
                return

    def _note(self, frame: Frame) -> None:
        now_secs = asyncio.get_running_loop().time()
        if isinstance(frame, MonologueTextFrame):
            self._pieces.append((now_secs, frame.text))
        elif isinstance(frame, UnheardTextFrame):
            self._said_words += MARK.sub(r"\1", frame.text).split()
        elif isinstance(frame, TTSTextFrame):
            self._said_words += frame.text.split()
            self._heard += frame.text.split()

    #
    # what became of it
    #

    def _result(self) -> CallResult:
        words, unanswered = self._count_told() if self._task == "told" else self._count_answers()
        return CallResult(
            words=words,
            too_late=len(self._said_words) - len(self._heard),
            unanswered=unanswered,
            lost=self._problems[0] if self._problems else None,
            context_is_right=self._context_words() == self._heard,
            silences_secs=self._silences(),
            moves=len(self._moved_at_secs),
        )

    def _count_told(self) -> tuple[WordCount, int]:
        return compare(TOLD.split() * self._told, self._said_words), 0

    def _count_answers(self) -> tuple[WordCount, int]:
        total, unanswered = WordCount(), 0
        bounds = [*self._requests_at_secs, float("inf")]
        for begin_secs, end_secs in pairwise(bounds):
            answer = [w for at, w in self._words() if begin_secs <= at < end_secs and w in NUMBERS]
            if answer:
                total += compare(NUMBERS, answer)
            else:
                unanswered += 1
        return total, unanswered

    def _words(self) -> list[tuple[float, str]]:
        """Return the words of the monologue, with the time of their first piece."""
        words: list[tuple[float, str]] = []
        for at_secs, piece in self._pieces:
            if piece.startswith(WORD_START) or not words:
                words.append((at_secs, piece.removeprefix(WORD_START)))
            else:
                words[-1] = (words[-1][0], words[-1][1] + piece)
        return words

    def _context_words(self) -> list[str]:
        said = [m["content"] for m in self._context.messages if m["role"] == "assistant"]
        return MARK.sub("", " ".join(said)).split()

    def _silences(self) -> list[float]:
        gaps = [(a, b) for (a, _), (b, _) in pairwise(self._words())]
        if not gaps:
            return []
        usual_secs = float(np.median([b - a for a, b in gaps]))
        within = [
            max(0.0, b - a - usual_secs)
            for moved_at_secs in self._moved_at_secs
            for a, b in gaps
            if a <= moved_at_secs < b and b - a < 10
        ]
        return within
