"""The user's side: their audio on its way to the model, and what a detector hears in it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame

from pipecat_duplex.conversation.pcm import pcm16_to_float
from pipecat_duplex.conversation.turns import UserVoice
from pipecat_duplex.conversation.user_audio import UserAudio, UserStep
from pipecat_duplex.service.activity import UserActivity
from pipecat_duplex.session import DuplexSession, InvalidAudio, SessionEnded


class Complaining(Protocol):
    """The service, as far as it matters here."""

    async def push_error(self, error_msg: str, exception: Exception | None = None) -> None:
        """Push an error frame."""
        ...


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the user did in a step of the session, and what the voice detector said of it."""

    index: int
    step: UserStep
    voice: UserVoice


class UserSide:
    """Feeds a session with the user's audio; the voice detector runs beside the model.

    Parameters:
        audio: The user's audio, cut into steps.
        activity: The voice detector; without one the user is never heard to speak.
    """

    def __init__(
        self,
        service: Complaining,
        audio: UserAudio,
        now_secs: Callable[[], float],
        activity: UserActivity | None,
    ):
        """Initialize at second 0 of a session.

        Args:
            service: Who pushes errors.
            audio: Cuts the user's audio into steps.
            now_secs: The time.
            activity: The voice detector, if it is loaded.
        """
        self._service = service
        self._now_secs = now_secs
        self._frames: asyncio.Queue[InputAudioRawFrame] = asyncio.Queue()
        self._heard: asyncio.Queue[_Heard] = asyncio.Queue()
        self._overload_warned = False
        self.audio = audio
        self.activity = activity

    def put(self, frame: InputAudioRawFrame) -> None:
        """Take audio in."""
        self._frames.put_nowait(frame)

    def start(self) -> None:
        """Begin: from now on silence takes the place of audio that does not come."""
        self.audio.start(self._now_secs())

    async def run(self, session: DuplexSession) -> None:
        """Feed the model: audio when it comes, silence when it does not.

        Args:
            session: Where the model is; returns when it ends.
        """
        try:
            while True:
                await self._take(session)
        except SessionEnded:
            pass  # The step consumer reports why.

    async def of(self, index: int) -> tuple[UserStep, UserVoice]:
        """Return the user's side of a step of the session.

        Args:
            index: The step. Those before it are forgotten.
        """
        while True:
            heard = await self._heard.get()
            if heard.index >= index:
                return heard.step, heard.voice

    async def _take(self, session: DuplexSession) -> None:
        try:
            async with asyncio.timeout(self._secs_to_fill()):
                frame = await self._frames.get()
        except TimeoutError:
            steps = self.audio.fill(self._now_secs())
        else:
            steps = await self._cut(frame)
        self._warn_of_overload()
        for step in steps:
            await self._send(session, step)

    def _secs_to_fill(self) -> float | None:
        wait_secs = self.audio.secs_to_fill(self._now_secs())
        # Audio that is there already comes before silence.
        return None if wait_secs is None or not self._frames.empty() else max(0.0, wait_secs)

    async def _cut(self, frame: InputAudioRawFrame) -> list[UserStep]:
        try:
            pcm = pcm16_to_float(frame.audio, frame.num_channels)
            return self.audio.take(pcm, frame.sample_rate, self._now_secs())
        except InvalidAudio as e:
            await self._service.push_error(f"Audio of the user was left out: {e}", exception=e)
            return []

    def _warn_of_overload(self) -> None:
        if self.audio.overloaded and not self._overload_warned:
            self._overload_warned = True
            logger.warning(f"{self._service}: the model is slower than real time; audio is dropped")

    async def _send(self, session: DuplexSession, step: UserStep) -> None:
        index = session.send(step.pcm)
        voice = await self.activity.observe(step.pcm) if self.activity else UserVoice.QUIET
        self._heard.put_nowait(_Heard(index, step, voice))
