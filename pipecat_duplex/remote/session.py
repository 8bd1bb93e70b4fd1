"""One conversation on a server elsewhere."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, replace

import numpy as np
from loguru import logger
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_duplex import protocol
from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.protocol.opus import OpusDecoder, OpusEncoder
from pipecat_duplex.remote.extensions import Extensions
from pipecat_duplex.remote.pairing import Pairing
from pipecat_duplex.remote.words import PieceQueue
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_PADDING,
    CannotSay,
    CanSay,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
    check_step_audio,
)
from pipecat_duplex.session.fair_clock import FairClock
from pipecat_duplex.session.history import History, ResumeKey
from pipecat_duplex.session.inbox import StepInbox
from pipecat_duplex.session.outlook import Outlook
from pipecat_duplex.session.saying import check_words
from pipecat_duplex.session.streams import TextStreams

UNKNOWN_TOKEN = -1
"""Text token of a step with a word whose server sends text only."""


_MISSING = {
    protocol.STREAM: "takes whole texts only, and does not keep the model's own words back",
    protocol.CAN_SAY: "does not tell which words its model has",
}

LOOK_SECS = 0.1
"""How often a session looks whether its server is alive."""

MAX_TICK_SECS = 0.2
"""Between two looks, more time than this went by because this process stood still."""

INTRODUCTION_SECS = 1.0
"""How long after the handshake a server of ours takes at most to say what it is."""


@dataclass(frozen=True)
class RemoteLimits:
    """When a server counts as dead.

    Parameters:
        ping_secs: Time between two pings, at least. A server that sends steps is alive, and is not
            asked; one that has sent nothing for half of this is.
        dead_secs: A server that sends nothing for so long, not even an answer to a ping, is gone.
        stall_secs: A server that answers pings but no frames for so long is stuck.
        close_secs: How long a server may take to say goodbye.
        answer_secs: How long a server may take to say whether it takes words.
        restore_secs: How long a server may take to go on with a conversation held elsewhere.
    """

    ping_secs: float = 0.2
    dead_secs: float = 1.5
    stall_secs: float = 5.0
    close_secs: float = 0.5
    answer_secs: float = 10.0
    restore_secs: float = 10.0


class RemoteSession(DuplexSession):
    """A conversation over a WebSocket.

    Belongs to the asyncio loop in which it was opened.
    """

    def __init__(
        self,
        connection: ClientConnection,
        *,
        host: str,
        audio_format: protocol.AudioFormat,
        config: SessionConfig,
        lead_steps: int,
        strips_spaces: bool,
        limits: RemoteLimits,
        greeting: protocol.Greeting | None = None,
        max_secs: float | None = None,
    ):
        """Initialize around a connection whose server is ready.

        Args:
            connection: The connection.
            host: Its server, for errors.
            audio_format: How audio travels.
            config: What the server was asked for.
            lead_steps: Frames at the beginning that an Opus stream leaves without audio.
            strips_spaces: Whether the server leaves out the space of a word after padding.
            limits: When the server counts as dead.
            greeting: What the server has said of itself so far.
            max_secs: The server ends the session after this much audio.
        """
        self._connection = connection
        self._host = host
        self._audio_format: protocol.AudioFormat = audio_format
        self._limits = limits
        self._id = f"remote-{(greeting and greeting.session) or secrets.token_hex(4)}"
        self._pairing = Pairing(0 if audio_format == "pcm" else lead_steps)
        self._pieces = PieceQueue(strips_after_padding=strips_spaces)
        self._encoder = OpusEncoder() if audio_format == "opus" else None
        self._decoder = OpusDecoder() if audio_format == "opus" else None
        self._cutter = StepCutter()
        self._inbox = StepInbox(self._id, self._end)
        self._max_secs = max_secs
        self._hangs_up_secs: float | None = None
        if greeting is not None and greeting.secs_left is not None:
            self._hangs_up_secs = time.monotonic() + greeting.secs_left
        self._sent = 0
        self._failed = False
        self._config = config
        self._greeting = greeting or protocol.Greeting()
        self._introduction = asyncio.Event()
        if greeting is not None:
            self._introduction.set()
        self._extensions = Extensions(self._id)
        self._streams = TextStreams()
        self._clock = FairClock(max_tick_secs=MAX_TICK_SECS)
        self._alive_secs = self._clock.now_secs()
        self._progress_secs = self._alive_secs
        self._out: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(self._run(work), name=f"{self._id}-{work.__name__}")
            for work in (self._write, self._read, self._watch)
        ]
        self._goodbye: asyncio.Task[None] | None = None
        self._pings = itertools.count()

    @property
    def id(self) -> str:
        """A name for logs and error messages."""
        return self._id

    @property
    def config(self) -> SessionConfig:
        """What the server was asked for."""
        return self._config

    @property
    def memory(self) -> ResumeKey | None:
        """Identifies which sessions can resume this one; ``None`` with other servers."""
        return self._greeting.memory

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which the user's words are behind the voice; None if the server tells none."""
        return self._greeting.hearing_delay_steps

    @property
    def secs_left(self) -> float | None:
        """How long the session still goes on, as far as the server has said."""
        left_secs = []
        if self._max_secs is not None:
            left_secs.append(self._max_secs - self._sent * STEP_SECS)
        if self._hangs_up_secs is not None:
            left_secs.append(self._hangs_up_secs - time.monotonic())
        return max(0.0, min(left_secs)) if left_secs else None

    def outlook(self) -> Outlook:
        """Return whether the server goes away, or has not been heard of."""
        leave = "" if self._hangs_up_secs is None else f"{self._host} is shutting down"
        return Outlook(leave, self._clock.now_secs() - self._alive_secs)

    @property
    def audio_format(self) -> protocol.AudioFormat:
        """How audio travels."""
        return self._audio_format

    @property
    def _waiting(self) -> int:
        """Frames without an answer."""
        return self._pairing.waiting

    @property
    def ended(self) -> bool:
        """Whether it is over, for any reason."""
        return self._inbox.is_over

    @property
    def failed(self) -> bool:
        """Whether it ended without having been closed."""
        return self._failed

    def send(self, pcm: np.ndarray) -> int:
        """Send the server the next step of the user's audio. Never waits for it.

        Args:
            pcm: Float32, shape ``(STEP_SAMPLES,)``, in [-1, 1], 24 kHz.

        Returns:
            The index of the step; the :class:`Step` that answers it carries the same one.

        Raises:
            InvalidAudio: Wrong shape or type, or not finite; the session is not touched.
            SessionEnded: The session is closed, has failed, or nobody takes its steps.
        """
        check_step_audio(pcm)
        return self._send(pcm)

    def follow(self, pcm: np.ndarray, tokens: np.ndarray) -> int:
        """Send a step that was taken elsewhere.

        See :class:`~pipecat_duplex.session.DuplexSession`.
        """
        check_step_audio(pcm)
        if protocol.FOLLOW not in self._greeting.features:
            raise DuplexError(f"{self._host} takes no steps that were taken elsewhere")
        self._inbox.check_open()
        self._out.put_nowait(protocol.encode(protocol.Tokens(self._sent, tokens)))
        return self._send(pcm)

    def _send(self, pcm: np.ndarray) -> int:
        self._inbox.accept(self._sent)
        if self._encoder is None:
            self._out.put_nowait(protocol.encode(protocol.Pcm(pcm)))
        else:
            self._out.put_nowait(protocol.encode(protocol.Audio(self._encoder.encode(pcm))))
        if not self._pairing.waiting:
            self._progress_secs = self._clock.now_secs()
        index, silent = self._pairing.send(time.monotonic())
        self._sent += 1
        if silent:
            self._deliver_silence(index, 0.0)
        return index

    def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order.

        See :meth:`~pipecat_duplex.session.inbox.StepInbox.steps`.
        """
        return self._inbox.steps()

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak these words; see :class:`~pipecat_duplex.session.DuplexSession`."""
        if not isinstance(text, str):
            return await self._streams.say(self, text, cut_in=cut_in)
        check_words(text)
        await self._check_can(protocol.STREAM if more else protocol.SAY)
        self._check_length(text)
        return await self._ask(text, cut_in=cut_in, more=more)

    async def can_say(self, text: str) -> CanSay:
        """Tell whether it has the words; see :class:`~pipecat_duplex.session.DuplexSession`."""
        try:
            check_words(text)
            await self._check_can(protocol.CAN_SAY)
            self._check_length(text)
            await self._ask(text, asks=True)
        except CannotSay as e:
            return CanSay(e.lacks, str(e))
        return CanSay()

    async def _ask(self, text: str, **options: bool) -> int:
        request, answer = self._extensions.ask()
        self._out.put_nowait(protocol.encode(protocol.Say(request, text, **options)))
        secs = self._limits.answer_secs
        try:
            async with asyncio.timeout(secs):
                return await answer
        except TimeoutError:
            raise CannotSay(f"{self._host} has not answered within {secs:g} s") from None

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance; see :class:`~pipecat_duplex.session.DuplexSession`."""
        check_words(text)
        await self._check_can(protocol.STREAM)
        self._check_length(text)
        say = protocol.Say(0, text, more=more, utterance_id=utterance_id)
        self._out.put_nowait(protocol.encode(say))

    async def hold(self, held: bool = True) -> None:
        """Keep the model's own words back; see :class:`~pipecat_duplex.session.DuplexSession`."""
        await self._check_can(protocol.STREAM)
        self._out.put_nowait(protocol.encode(protocol.Hold(held)))

    async def hush(self) -> None:
        """Drop what :meth:`say` has not spoken yet."""
        await self._check_can(protocol.SAY)
        self._out.put_nowait(protocol.encode(protocol.Say(0, None)))

    async def restore(self, history: History) -> None:
        """Go on with a conversation; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._inbox.check_open()
        if protocol.RESTORE not in self._greeting.features:
            raise DuplexError(f"{self._host} cannot go on with a conversation held elsewhere")
        answer = self._extensions.ask_to_restore()
        for piece in protocol.HistoryPiece.split(history.to_bytes()):
            self._out.put_nowait(protocol.encode(piece))
        secs = self._limits.restore_secs * self._config.patience
        try:
            async with asyncio.timeout(secs):
                await answer
        except TimeoutError:
            reason = f"{self._host} has not taken up the conversation within {secs:g} s"
            self._end(reason)
            raise SessionEnded(self._id, reason) from None
        except DuplexError:
            self._failed = True  # A fleet tries others first.
            raise

    async def _check_can(self, feature: str) -> None:
        self._inbox.check_open()
        await self._introduced()
        if protocol.SAY not in self._greeting.features:
            raise CannotSay(
                f"{self._host} cannot let its agent say given words: only pipecat-duplex's server "
                "knows how"
            )
        if feature not in self._greeting.features:
            raise CannotSay(f"{self._host} {_MISSING[feature]}: it needs a newer pipecat-duplex")

    def _check_length(self, text: str) -> None:
        most = self._greeting.max_say_bytes
        if len(text.encode()) > most:
            raise CannotSay(f"{self._host} takes at most {most} bytes of words at once")

    async def _introduced(self) -> None:
        """Wait until the server has said what it is: in Opus it does so after its handshake."""
        try:
            await asyncio.wait_for(self._introduction.wait(), INTRODUCTION_SECS)
        except TimeoutError:
            self._introduction.set()  # It never will: no server of ours.
        self._inbox.check_open()

    async def close(self) -> None:
        """Hang up. May be called any number of times."""
        self._inbox.close()
        self._streams.close()
        self._extensions.end("it was closed")
        self._hang_up()
        assert self._goodbye is not None
        await asyncio.shield(self._goodbye)

    #
    # the three tasks
    #

    async def _run(self, work) -> None:
        """Let a task end the session for the reason it gives, or failed with."""
        try:
            reason = await work()
        except ConnectionClosed as e:
            if work != self._read:
                return  # What came before the end is read first.
            reason = self._describe_close(e)
        except (protocol.WireError, InvalidAudio) as e:
            reason = f"{self._host} sent something wrong: {e}"
        except Exception as e:
            logger.opt(exception=e).error(f"Session {self._id} failed")
            reason = f"the connection to {self._host} failed: {e}"
        self._end(reason)

    async def _write(self) -> str:
        while True:
            await self._connection.send(await self._out.get())

    async def _read(self) -> str:
        while True:
            message = protocol.parse(await self._connection.recv())
            self._alive_secs = self._clock.now_secs()
            if isinstance(message, protocol.Audio):
                self._take_audio(message.data)
            elif isinstance(message, protocol.AgentStep):
                self._take_step(message.step)
            elif isinstance(message, protocol.SpeechNote):
                self._extensions.note(message)
            elif isinstance(message, protocol.SayAnswer):
                self._extensions.take_answer(message)
            elif isinstance(message, protocol.Tokens):
                self._extensions.note_tokens(message)
            elif isinstance(message, protocol.Heard):
                self._extensions.note_heard(message)
            elif isinstance(message, protocol.HistoryPiece):
                self._extensions.take_restored(message)
            elif isinstance(message, protocol.Metadata):
                self._take_metadata(message)
            elif isinstance(message, protocol.Text):
                self._pieces.put(message.text)
            elif isinstance(message, protocol.Error):
                return f"{self._host} reports: {in_one_line(message.reason)}"

    async def _watch(self) -> str:
        """Ping the server, and notice when it is gone or stuck."""
        limits = self._limits
        pinged_secs = float("-inf")
        while True:
            self._clock.tick()
            now_secs = self._clock.now_secs()
            if now_secs - self._alive_secs > limits.dead_secs:
                return f"{self._host} has given no sign of life for {limits.dead_secs:g} s"
            if self._waiting and now_secs - self._progress_secs > limits.stall_secs:
                return f"{self._host} has answered no audio for {limits.stall_secs:g} s"
            is_quiet = now_secs - self._alive_secs >= limits.ping_secs / 2
            if is_quiet and now_secs - pinged_secs >= limits.ping_secs:
                pinged_secs = now_secs
                await self._ping()
            await asyncio.sleep(min(LOOK_SECS, limits.ping_secs))

    async def _ping(self) -> None:
        with contextlib.suppress(TimeoutError):  # The buffers are full: nobody reads.
            async with asyncio.timeout(LOOK_SECS):
                pong = asyncio.ensure_future(await self._connection.ping(self._ping_payload()))
                pong.add_done_callback(self._note_pong)

    def _ping_payload(self) -> bytes:
        """Return a payload that is a ping of Moshi's protocol too.

        The Rust backend takes WebSocket pings for messages, and ends a session with one that it
        does not know.
        """
        return protocol.encode(protocol.Ping()) + (next(self._pings) % (1 << 24)).to_bytes(3, "big")

    def _note_pong(self, pong: asyncio.Future) -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._alive_secs = self._clock.now_secs()

    #
    # from the server
    #

    def _take_metadata(self, message: protocol.Metadata) -> None:
        greeting = protocol.Greeting.read(message)
        if greeting is None:
            return
        if not self._introduction.is_set():
            self._greeting = greeting
            self._introduction.set()
        # With Opus, what could not come before the handshake.
        if greeting.max_secs is not None:
            self._max_secs = greeting.max_secs
        if greeting.secs_left is not None:
            self._hangs_up_secs = time.monotonic() + greeting.secs_left

    def _take_step(self, step: Step) -> None:
        mine = self._pairing.answer_oldest()
        if self._audio_format != "pcm" or mine is None or mine[0] != step.index:
            raise protocol.WireError(f"a step {step.index} that answers no frame")
        under_way_secs = time.monotonic() - mine[1]
        compute_secs = step.timing.compute_secs
        timing = StepTiming(max(0.0, under_way_secs - compute_secs), compute_secs)
        self._deliver(replace(step, timing=timing))

    def _take_audio(self, data: bytes) -> None:
        if self._decoder is None:
            raise protocol.WireError("audio in Opus, where raw audio was agreed on")
        for pcm in self._cutter.push(self._decoder.decode(data)):
            self._take_block(pcm)

    def _take_block(self, pcm: np.ndarray) -> None:
        now_secs = time.monotonic()
        lost, mine = self._pairing.answer(now_secs)
        for index, sent_secs in lost:
            self._deliver_silence(index, now_secs - sent_secs)
        if lost:
            logger.warning(
                f"Session {self._id}: {len(lost)} steps of {self._host} were lost; they are silent"
            )
        if mine is None:
            return
        index, sent_secs = mine
        self._deliver_block(index, pcm, now_secs - sent_secs)

    def _deliver_silence(self, index: int, under_way_secs: float) -> None:
        pcm = np.zeros(STEP_SAMPLES, np.float32)
        self._deliver(Step(index, pcm, TEXT_PADDING, None, StepTiming(under_way_secs, 0.0)))

    def _deliver_block(self, index: int, pcm: np.ndarray, under_way_secs: float) -> None:
        piece = self._pieces.take()
        token = TEXT_PADDING if piece is None else UNKNOWN_TOKEN
        self._deliver(Step(index, pcm, token, piece, StepTiming(under_way_secs, 0.0)))

    def _deliver(self, step: Step) -> None:
        self._progress_secs = self._clock.now_secs()
        self._inbox.put(self._extensions.annotate(step))

    #
    # the end
    #

    def _end(self, reason: str) -> None:
        if self._inbox.end(reason):
            self._failed = True
            self._extensions.end(reason)
            logger.debug(f"Session {self._id} ended: {reason}")
            self._hang_up()

    def _hang_up(self) -> None:
        if self._goodbye is None:
            self._goodbye = asyncio.create_task(self._say_goodbye(), name=f"{self._id}-goodbye")

    async def _say_goodbye(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_secs):
                await self._leave()
        await self._connection.close()

    async def _leave(self) -> None:
        """Say goodbye in the protocol's words, where it has some."""

    def _describe_close(self, error: ConnectionClosed) -> str:
        if error.rcvd is None:
            return f"the connection to {self._host} was lost"
        reason = in_one_line(error.rcvd.reason) or "no reason given"
        return f"{self._host} hung up: {reason} (close code {error.rcvd.code})"


def in_one_line(text: str) -> str:
    """Another machine's words as they may go into a log."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
