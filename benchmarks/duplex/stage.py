"""Where users and the agent meet: by the clock through a real pipeline, or in lock step."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    MetricsFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_transport import TransportParams

from benchmarks.duplex.dialogue import Dialogue
from benchmarks.duplex.users import Plan, User
from pipecat_duplex import DuplexLLMService, DuplexMetricsData
from pipecat_duplex.commands.converse.file_transport import FileOutputTransport
from pipecat_duplex.commands.converse.pacing import RealTime, WatchedBackend
from pipecat_duplex.commands.converse.pipeline import run_pipeline
from pipecat_duplex.conversation.pcm import float_to_pcm16, pcm16_to_float
from pipecat_duplex.service.frames import MonologueTextFrame
from pipecat_duplex.service.settings import DuplexLLMSettings
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SECS,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    SessionConfig,
    StepTiming,
)


async def by_the_clock(
    backend: DuplexBackend,
    plans: Sequence[Plan],
    *,
    at_once: int,
    seeds: Sequence[int | None],
    on_done: Callable[[Dialogue], None] = lambda dialogue: None,
) -> list[Dialogue]:
    """Hold every dialogue in a pipeline of its own, at the speed of speech.

    Args:
        backend: Whom the users talk to.
        plans: Their parts.
        at_once: Dialogues at a time.
        seeds: Of the agent's sampling, one a dialogue.
        on_done: Called with each dialogue that is over.

    Returns:
        The dialogues, in the order of the plans.
    """
    free = asyncio.Semaphore(at_once)

    async def hold(plan: Plan, seed: int | None) -> Dialogue:
        async with free:
            dialogue = await _Call(backend, User(plan), seed).run()
            on_done(dialogue)
            return dialogue

    return list(await asyncio.gather(*map(hold, plans, seeds)))


class _Microphone(BaseInputTransport):
    """Gives the pipeline what the user says, a step at a time, by the clock."""

    def __init__(self, user: User, pacer: RealTime):
        super().__init__(
            TransportParams(audio_in_enabled=True, audio_in_sample_rate=SAMPLE_RATE_HZ)
        )
        self._user = user
        self._pacer = pacer

    async def start(self, frame: StartFrame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def feed(self) -> None:
        steps = 0
        for index, pcm in enumerate(self._user.frames()):
            if not await self._pacer.wait_turn(index):
                return
            await self.push_audio_frame(
                InputAudioRawFrame(float_to_pcm16(pcm), SAMPLE_RATE_HZ, num_channels=1)
            )
            steps = index + 1
        await self._pacer.wait_end(steps)


class _Call:
    """One dialogue in its pipeline."""

    def __init__(self, backend: DuplexBackend, user: User, seed: int | None):
        self._user = user
        self._watched = WatchedBackend(backend)
        self._pacer = RealTime(self._watched)
        self._service = DuplexLLMService(
            backend=self._watched, settings=DuplexLLMSettings(seed=seed), reopen_secs=0
        )
        self._origin_secs = 0.0
        self._lost_input = 0
        self._failure: str | None = None

    async def run(self) -> Dialogue:
        microphone = _Microphone(self._user, self._pacer)
        loudspeaker = FileOutputTransport(self._hear, realtime=True)
        try:
            await run_pipeline(
                microphone,
                self._service,
                loudspeaker,
                feed=lambda: self._feed(microphone),
                on_error=self._note_error,
                enable_metrics=True,
            )
        except DuplexError as error:
            self._note_error(str(error))
        dialogue = self._user.dialogue()
        _note_timings(dialogue, self._watched.timings)
        dialogue.dropped_steps = self._lost_input + self._service.dropped_output_steps
        if self._watched.failure is not None:
            self._failure = self._failure or str(self._watched.failure)
        dialogue.failure = self._failure
        return dialogue

    async def _feed(self, microphone: _Microphone) -> None:
        # All users speak in one raster of steps, so that an engine can batch them.
        await asyncio.sleep(-time.monotonic() % STEP_SECS)
        self._origin_secs = self._pacer.now_secs()
        await microphone.feed()

    def _note_error(self, message: str) -> None:
        self._failure = self._failure or message

    def _hear(self, frame: Frame) -> None:
        """Take what reaches the loudspeaker."""
        now_secs = self._pacer.now_secs() - self._origin_secs
        ear = self._user.ear
        if isinstance(frame, TTSAudioRawFrame):
            ear.hear(now_secs, pcm16_to_float(frame.audio, frame.num_channels))
        elif isinstance(frame, InterruptionFrame):
            ear.flush(now_secs)
        elif isinstance(frame, MonologueTextFrame):
            ear.note_piece(now_secs, frame.step_index, frame.text)
        elif isinstance(frame, MetricsFrame):
            for data in frame.data:
                if isinstance(data, DuplexMetricsData):
                    self._lost_input = data.filled_steps + data.dropped_input_steps


async def in_lock_step(
    backend: DuplexBackend,
    plans: Sequence[Plan],
    *,
    at_once: int,
    seeds: Sequence[int | None],
    on_done: Callable[[Dialogue], None] = lambda dialogue: None,
) -> list[Dialogue]:
    """Hold dialogues with sessions themselves: the next step goes in when this one has come out.

    Nothing depends on the machine's speed: what answers a step is heard when it has been spoken.

    Args:
        backend: Whom the users talk to.
        plans: Their parts.
        at_once: Dialogues at a time.
        seeds: Of the agent's sampling, one a dialogue.
        on_done: Called with each dialogue that is over.

    Returns:
        The dialogues, in the order of the plans.
    """
    waiting = list(zip(plans, seeds, strict=True))
    lines: list[_Line] = []
    running: list[_Line] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                plan, seed = waiting.pop(0)
                running.append(_Line(await backend.open(SessionConfig(seed=seed)), User(plan)))
                lines.append(running[-1])
            spoken = [line for line in running if line.speak()]
            await asyncio.gather(*(line.listen() for line in spoken))
            for line in [line for line in running if line.over]:
                running.remove(line)
                await line.session.close()
                on_done(line.dialogue())
    finally:
        for line in running:
            await line.session.close()
    return [line.dialogue() for line in lines]


class _Line:
    """One dialogue with a session."""

    def __init__(self, session: DuplexSession, user: User):
        self.session = session
        self.over = False
        self._user = user
        self._frames = user.frames()
        self._steps = session.steps()
        self._timings: list[StepTiming] = []
        self._failure: str | None = None
        self._dialogue: Dialogue | None = None

    def speak(self) -> bool:
        """Send the next step; False when there is none."""
        pcm: np.ndarray | None = next(self._frames, None)
        if pcm is None:
            self.over = True
            return False
        try:
            self.session.send(pcm)
        except DuplexError as error:
            self._fail(error)
        return not self.over

    async def listen(self) -> None:
        """Hear the answer to the step."""
        try:
            step = await anext(self._steps)
        except (DuplexError, StopAsyncIteration) as error:
            self._fail(error)
            return
        now_secs = (step.index + 1) * STEP_SECS
        self._user.ear.hear(now_secs, step.pcm)
        if step.text_piece is not None:
            self._user.ear.note_piece(now_secs, step.index, step.text_piece)
        self._timings.append(step.timing)

    def dialogue(self) -> Dialogue:
        """Return what came of it."""
        if self._dialogue is None:
            self._dialogue = self._user.dialogue()
            _note_timings(self._dialogue, self._timings)
            self._dialogue.late_steps = 0  # there is no clock to be late by
            self._dialogue.failure = self._failure
        return self._dialogue

    def _fail(self, error: Exception) -> None:
        self._failure = str(error) or "the session ended by itself"
        self.over = True


def _note_timings(dialogue: Dialogue, timings: Iterable[StepTiming]) -> None:
    for timing in timings:
        dialogue.compute_secs.append(timing.compute_secs)
        dialogue.late_steps += timing.waited_secs + timing.compute_secs > STEP_SECS
