"""The full-duplex service: the whole speech loop in one Pipecat processor."""

import asyncio
import copy
import math
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from loguru import logger
from pipecat.audio.vad.vad_analyzer import VADAnalyzer
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMAssistantPushAggregationFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMServiceMetadataFrame,
    MetricsFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    SpeechControlParamsFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings
from pipecat.utils.types import assert_given, is_given

from pipecat_duplex.conversation.agent_audio import AgentAudio, AgentSound
from pipecat_duplex.conversation.captions import Caption, Captions
from pipecat_duplex.conversation.clock import ClockSettings
from pipecat_duplex.conversation.monologue import Monologue, Word
from pipecat_duplex.conversation.pcm import SILENCE_DB, float_to_pcm16
from pipecat_duplex.conversation.turns import (
    AgentStarted,
    AgentStopped,
    Backchannel,
    TurnEvent,
    TurnSettings,
    TurnTracker,
    UserStarted,
    UserStopped,
    Yielded,
)
from pipecat_duplex.conversation.user_audio import UserAudio
from pipecat_duplex.service.activity import UserActivity
from pipecat_duplex.service.arguments import (
    NO_TOOLS,
    UNSUPPORTED_SETTINGS,
    check_backend,
    check_keywords,
    check_types,
    check_url,
    unread_context,
    warn_of_unsupported_settings,
)
from pipecat_duplex.service.captions import caption_frames
from pipecat_duplex.service.delegation import NO_BACKEND, SILENT_FRONTEND, Delegation
from pipecat_duplex.service.foreign_voice import ForeignVoice, tts_downstream_of
from pipecat_duplex.service.frames import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexMetricsData,
    MonologueTextFrame,
)
from pipecat_duplex.service.given_words import MAX_FINISH_SECS, GivenWords
from pipecat_duplex.service.heard_speech import shift_words
from pipecat_duplex.service.llm_upstream import LlmUpstream, Words, llm_upstream_of
from pipecat_duplex.service.settings import DEFAULT_FILLER_AFTER_MS, DuplexLLMSettings
from pipecat_duplex.service.tracing import TracedConversation
from pipecat_duplex.service.user_side import UserSide
from pipecat_duplex.service.user_turns import DuplexUserTurnStrategies
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SECS,
    CanSay,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    Said,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.session.continued import ContinuedSession, MoveNews, restore_or_close
from pipecat_duplex.session.history import History
from pipecat_duplex.session.retry import Pauses, Retry
from pipecat_duplex.session.saying import Saying

# How long a yield waits for the user aggregator to open the user's turn, so that observers see
# the turn before the interruption. It takes well under a millisecond when there is one.
USER_TURN_TIMEOUT_SECS = 0.05

METRICS_STEPS = 12

DEFAULT_CHECKPOINT = "embedded"

REOPEN = Pauses(first_secs=0.25, max_secs=2.0)


class DuplexLLMService(TracedConversation, LLMService):
    """A full-duplex speech-text model as a Pipecat service.

    User audio goes in; agent audio, words, turn frames and interruptions come out. The model
    (Kyutai's Moshi family) listens and speaks at the same time and takes and yields the floor by
    itself: there is no VAD, STT, LLM or TTS around it, and nothing gates what it hears.

    It drops in between the context aggregators::

        pipeline = Pipeline([
            transport.input(),
            user_aggregator,
            DuplexLLMService(checkpoint="embedded"),
            transport.output(),
            assistant_aggregator,
        ])

    The service proposes user turns to the aggregator and broadcasts an interruption when, and only
    when, the model yields. ``docs/events.md`` lists every frame and handler.

    Event handlers available:

    - on_session_started: Called with the session's id.
    - on_session_ended: Called with the session's id and the reason, or None after an orderly end.
    - on_session_ending: Called once, with the seconds until the session's limit or until its
      server shuts down.
    - on_session_moving: Called with the session's id and the reason, when a session was lost and
      the conversation moves to another one.
    - on_session_moved: Called with the session's id and the length of the gap in seconds.
    - on_user_started: Called with a :class:`~pipecat_duplex.conversation.turns.UserStarted`.
    - on_user_stopped: Called with a ``UserStopped``.
    - on_agent_started: Called with an ``AgentStarted``.
    - on_agent_stopped: Called with an ``AgentStopped`` and the text of the utterance.
    - on_yield: Called with a ``Yielded`` and the text said so far.
    - on_backchannel: Called with a ``Backchannel``.
    - on_said: Called with a :class:`~pipecat_duplex.session.Said`, when given words were spoken or
      dropped.
    - on_user_transcript: Called with what the user said, the seconds in which it was said, and
      ``turn`` or ``backchannel``.

    Example::

        @duplex.event_handler("on_yield")
        async def on_yield(service, event, text):
            print(f"gave up the floor after {event.delay_secs:.2f} s, at: {text}")
    """

    Settings = DuplexLLMSettings
    _settings: Settings  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        backend: DuplexBackend | None = None,
        url: str | Sequence[str] | None = None,
        tts: str | None = None,
        api_key: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        vad_analyzer: VADAnalyzer | None = None,
        settings: Settings | None = None,
        turns: TurnSettings | None = None,
        clock: ClockSettings | None = None,
        reopen_secs: float = 10.0,
        history: History | None = None,
        ending_notice_secs: float = 30.0,
        now_secs: Callable[[], float] = time.monotonic,
        **kwargs,
    ):
        """Initialize the service. Weights are loaded in ``setup``.

        Args:
            checkpoint: The model to load: ``embedded`` (the default), a hub name such as
                ``kyutai/moshiko-pytorch-bf16``, or a local folder. With a backend or a URL, only
                its name in metrics.
            backend: A source of sessions in place of a checkpoint, such as one ``Engine`` that all
                bots of a process share. The service does not close it.
            url: A server to call instead, such as ``ws://gpu:8998/api/chat``: one of ours, or any
                that speaks Moshi's protocol, or vLLM-Omni, as ``vllm-omni://gpu:8099``. Or several
                of the first two: a list, a name with many addresses, or a registry's
                ``http://host:8990/workers``. The emptiest is called; when it dies or shuts down,
                the conversation goes on at another.
            tts: Who speaks given words, where the service loads the model: ``hibari``, which has
                any words, or ``own``, the model itself. None is ``hibari`` for ``embedded``, and
                the model for all other checkpoints (:meth:`~pipecat_duplex.engine.Engine.load`).
            api_key: The server's key, if it wants one.
            ssl_context: For servers whose certificate is not publicly known.
            vad_analyzer: Observes the user's voice for turn events. Pipecat's Silero by default.
            settings: Sampling and limits.
            turns: Levels and times of the turn events.
            clock: How much lateness is tolerated on the way in and out.
            reopen_secs: How long to retry after a session fails. The conversation resumes if the
                backend supports it, otherwise a new one starts. 0 disables retrying.
            history: A conversation to resume: :attr:`history` of another service.
            ending_notice_secs: How long before its end a session calls ``on_session_ending``.
            now_secs: The time, for tests and for runs faster than real time.
            **kwargs: Additional arguments passed to the parent LLMService.

        Raises:
            TypeError: An argument is unknown, or has the wrong type.
            ValueError: Two arguments contradict each other, or one is out of range.
            DuplexError: The URL is not one.
        """
        check_keywords(type(self), kwargs)
        check_backend(backend)
        check_url(url)
        check_types(
            {
                "checkpoint": (checkpoint, str, "the name of a model or a folder"),
                "tts": (tts, str, "the name of a voice"),
                "api_key": (api_key, str, "text"),
                "vad_analyzer": (vad_analyzer, VADAnalyzer, "a VADAnalyzer"),
                "settings": (settings, LLMSettings, "DuplexLLMService.Settings(…)"),
                "turns": (turns, TurnSettings, "TurnSettings(…)"),
                "clock": (clock, ClockSettings, "ClockSettings(…)"),
                "reopen_secs": (reopen_secs, (int, float), "a number of seconds"),
                "history": (history, History, "a History"),
                "ending_notice_secs": (ending_notice_secs, (int, float), "a number of seconds"),
            }
        )
        if url is not None and backend is not None:
            raise ValueError("give url or backend, not both")
        if api_key is not None and url is None:
            raise ValueError("api_key is shown to a server; give its url, too")
        if ssl_context is not None and url is None:
            raise ValueError("ssl_context is for a server; give its url, too")
        if not reopen_secs >= 0:
            raise ValueError(f"reopen_secs must be 0 or more, not {reopen_secs}")
        if not callable(now_secs):
            raise TypeError(f"now_secs must be a function, not {now_secs!r}")
        loads_model = backend is None and url is None
        if tts is not None and not loads_model:
            raise ValueError(
                "tts is for a model that the service loads: Engine.load(tts=…), or serve"
            )
        checkpoint = _chosen_checkpoint(checkpoint, settings, loads_model=loads_model)
        all_settings = self.Settings.defaults(checkpoint)
        if settings is not None:
            all_settings.apply_update(settings)  # pyright: ignore[reportArgumentType]
        all_settings.check_words()
        super().__init__(settings=all_settings, **kwargs)
        if settings is not None:
            warn_of_unsupported_settings(self, settings)

        self._checkpoint = checkpoint
        self._tts = tts
        self._backend = backend
        self._owns_backend = backend is None
        if url is not None:
            from pipecat_duplex.remote import servers

            self._backend = servers(url, api_key=api_key, ssl_context=ssl_context)
        self._load_error: DuplexError | None = None
        self._unread_context = ""
        self._vad_in_front = False
        self._somebody_came = asyncio.Event()
        self._vad_analyzer = vad_analyzer
        self._activity: UserActivity | None = None
        self._now_secs = now_secs

        self._turn_settings = turns
        self._clock_settings = clock
        self._reopen_secs = reopen_secs
        self._ending_notice_secs = ending_notice_secs
        self._session: DuplexSession | None = None
        self._input_task: asyncio.Task | None = None
        self._session_task: asyncio.Task | None = None
        self._given_words = GivenWords()
        times = turns or TurnSettings()
        self._voice = ForeignVoice(self, max(1, round(times.mime_stop_secs / STEP_SECS)))
        self._upstream = LlmUpstream(self, times.wish_patience_secs)
        self._delegation = Delegation()
        self._hold_secs: float | None = None
        self._held = False
        self._take_word_settings()
        self._continued: ContinuedSession | None = None
        self._history = history
        self._out_rate_hz = SAMPLE_RATE_HZ
        self._begin_conversation()

        for event in (
            "on_session_started",
            "on_session_ended",
            "on_session_ending",
            "on_session_moving",
            "on_session_moved",
            "on_user_started",
            "on_user_stopped",
            "on_agent_started",
            "on_agent_stopped",
            "on_yield",
            "on_backchannel",
            "on_said",
            "on_user_transcript",
        ):
            self._register_event_handler(event)

    def _begin_conversation(self):
        """Set up what belongs to one session; a fresh session begins at second 0."""
        self._user_audio = UserAudio(self._clock_settings)
        self._user_side = UserSide(self, self._user_audio, self._now_secs, self._activity)
        self._agent_audio = AgentAudio(self._out_rate_hz, self._clock_settings)
        self._monologue = Monologue()
        self._captions = Captions()
        self._tracker = TurnTracker(self._turn_settings)
        self._given_words.begin_session()
        self._upstream.begin_session()
        self._held = False

        self._due_secs = 0.0
        self._handled_steps = 0
        self._step_timings: list[StepTiming] = []
        self._end_announced = False
        self._speaking = False
        self._pauses = False
        self._brackets_llm = True
        self._utterance_id: int | None = None
        self._interrupted = False
        self._user_turn_proposed = False
        self._user_turn_opened = asyncio.Event()

    def can_generate_metrics(self) -> bool:
        """Check if the service can generate usage metrics.

        Returns:
            True: time to first agent audio, step time and lag.
        """
        return True

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        """Recommend turn strategies that leave turns and interruptions to the model.

        Behind an LLM, which reads the context, the service is not a realtime one.
        """
        is_realtime = self.words == "own" and not llm_upstream_of(self)
        self._upstream.desk.context_is_ours = is_realtime
        return LLMServiceMetadataFrame(
            service_name=self.name,
            is_realtime_service=is_realtime,
            user_turn_strategies=DuplexUserTurnStrategies(desk=self._upstream.desk),
        )

    @property
    def words(self) -> Words:
        """Whose words the agent says: ``own``, ``given`` or ``both``."""
        return self._upstream.words

    @property
    def _input_clock(self) -> UserAudio:
        """Former name of the user's audio, for scripts that read its counts."""
        return self._user_audio

    @property
    def step_count(self) -> int:
        """Steps that have come out of the model and been pushed."""
        return self._handled_steps

    @property
    def lag_secs(self) -> float:
        """Delay of the agent's audio beyond its smallest delay, at the last step."""
        return self._agent_audio.lag_secs

    @property
    def dropped_output_steps(self) -> int:
        """Steps of agent speech that came too late to be heard."""
        return self._agent_audio.dropped_steps

    #
    # lifecycle
    #

    async def setup(self, setup: FrameProcessorSetup):
        """Load the weights and the voice detector, off the event loop.

        Args:
            setup: Configuration object containing setup parameters.
        """
        await super().setup(setup)
        self._out_rate_hz = setup.audio_out_sample_rate
        self._agent_audio = AgentAudio(self._out_rate_hz, self._clock_settings)
        self._activity = await asyncio.to_thread(_load_activity, self._vad_analyzer)
        self._user_side.activity = self._activity
        if self._backend is None:
            await self._load_engine()

    async def start(self, frame: StartFrame):
        """Open the session.

        Args:
            frame: The start frame.
        """
        await super().start(frame)
        self._take_word_settings()
        if not self._voice.is_on and tts_downstream_of(self):
            logger.warning(
                f"{self}: a TTS behind it speaks the model's words once more: take it out, or set "
                "words to 'given' and voice to 'tts'"
            )
        self._upstream.start()
        if self._load_error:
            await self.push_error(
                f"Cannot load the model: {self._load_error}",
                exception=self._load_error,
                force_treat_as_permanent=True,
            )
        if self._backend is None or self._session is not None:
            return
        try:
            self._session = await self._open_session(self._backend)
        except (DuplexError, ValueError) as e:
            await self.push_error(
                f"Cannot open a session: {e}", exception=e, force_treat_as_permanent=True
            )
            return
        self._session_task = self.create_task(self._converse(self._session))

    async def stop(self, frame: EndFrame):
        """Close the session, and every bracket that is open.

        Args:
            frame: The end frame.
        """
        await super().stop(frame)
        await self._finish_given_words()
        await self._upstream.stop()
        await self._stop_tasks()
        await self._finish_turns()
        await self._close_session()

    async def cancel(self, frame: CancelFrame):
        """Close the session at once.

        Args:
            frame: The cancel frame.
        """
        await super().cancel(frame)
        await self._upstream.stop()
        await self._close_session()

    async def cleanup(self):
        """Release the session, the voice detector and, if it is the service's own, the engine."""
        try:
            await self._upstream.stop()
            await self._close_session()
            activity, self._activity = self._activity, None
            if activity:
                await activity.cleanup()
            if self._owns_backend and self._backend:
                backend, self._backend = self._backend, None
                await backend.close()
        finally:
            await super().cleanup()

    async def _load_engine(self):
        try:
            # Torch is imported here, in a thread, and only by bots that run the model themselves.
            engine_class = await asyncio.to_thread(_import_engine)
            self._backend = await engine_class.load(self._checkpoint, tts=self._tts or "auto")
        except DuplexError as e:
            self._load_error = e  # Told in start: no frame goes anywhere before StartFrame.

    async def _open_session(self, backend: DuplexBackend) -> DuplexSession:
        """Open a session, one that survives if it can."""
        config = self._settings.session_config()
        session = await backend.open(config)
        memory, history = session.memory, self.history or self._history
        if history is not None and (memory is None or history.fingerprint != memory.fingerprint):
            logger.warning(
                f"{self}: the conversation begins afresh: {self._checkpoint} was not "
                "what its history was made with, or its server takes none"
            )
            history = None
        if history is not None:
            await restore_or_close(session, history)
        if memory is None or not self._reopen_secs:
            return session
        self._continued = ContinuedSession(
            backend,
            config,
            session,
            memory,
            give_up_secs=self._reopen_secs,
            history=history,
            news=self._move_news(session.id),
        )
        return self._continued

    def _move_news(self, session_id: str) -> MoveNews:
        """Tell the bot of the moves of a session."""

        async def moving(reason: str):
            await self._call_event_handler("on_session_moving", session_id, reason)

        async def delayed(problem: str):
            await self.push_error(f"Session {session_id} is to go on elsewhere: {problem}")

        async def moved(secs: float):
            await self._call_event_handler("on_session_moved", session_id, secs)

        return MoveNews(moving, delayed, moved)

    @property
    def history(self) -> History | None:
        """The state from which the conversation can be rebuilt, also after its session failed."""
        return self._continued.history() if self._continued else None

    async def _handle_summary_request(self, frame):
        """Leave it to the LLM upstream: a full-duplex model writes no summaries."""

    async def _update_settings(self, delta):
        """Take new settings; those of a session take effect with the next one."""
        wanted = copy.copy(self._settings)
        wanted.apply_update(delta)  # pyright: ignore[reportArgumentType]
        try:
            wanted.session_config()
            wanted.check_words()
        except (TypeError, ValueError) as e:
            await self.push_error(f"New settings were left out: {e}", exception=e)
            return {}
        warn_of_unsupported_settings(self, delta)
        changed = await super()._update_settings(delta)
        if "model" in changed:
            logger.warning(f"{self}: the model cannot be changed once it is loaded")
            self._settings.model = changed["model"]
            self._sync_model_name_to_metrics()
        at_once = {"words", "voice", "filler", "filler_after_ms"}
        if changed.keys() & at_once:
            self._take_word_settings()
            await self._apply_hold()
            if not self._voice.is_on:
                await self._voice.stopped()
        later = sorted(changed.keys() - {"model", *at_once, *UNSUPPORTED_SETTINGS})
        if later and self._session is not None:
            logger.warning(f"{self}: from the next session on: {', '.join(later)}")
        return changed

    def register_function(self, function_name, handler, **options):
        """Register a function, which is never called: the model has no tools.

        The one by which an ``LLMWithBackend`` is asked for work is called for each message of the
        user's.

        Args:
            function_name: Its name.
            handler: What would be called.
            **options: See :class:`LLMService`.
        """
        if not self._delegation.installs(function_name):
            logger.warning(f"{self}: {function_name!r} will never be called: {NO_TOOLS}")
        super().register_function(function_name, handler, **options)

    def register_direct_function(self, handler, **options):
        """Register a function, which is never called: the model has no tools.

        Args:
            handler: What would be called.
            **options: See :class:`LLMService`.
        """
        logger.warning(f"{self}: {handler.__name__!r} will never be called: {NO_TOOLS}")
        super().register_direct_function(handler, **options)

    def llm_with_backend_role_objection(self, role: str) -> str | None:
        """Return why the service cannot take a role in Pipecat's ``LLMWithBackend``.

        As a frontend it hands each message of the user's to the backend, and says what the backend
        wants told.
        """
        if role != "frontend":
            return NO_BACKEND
        if self._settings.words == "own":
            return SILENT_FRONTEND
        self._delegation.is_frontend = True
        self._take_word_settings()
        return None

    async def _stop_tasks(self):
        tasks = (self._input_task, self._session_task)
        self._input_task = self._session_task = None
        for task in tasks:
            if task:
                await self.cancel_task(task)

    async def _close_session(self):
        await self._stop_tasks()
        session, self._session = self._session, None
        self._given_words.session = None
        if session:
            await session.close()
            logger.info(f"{self}: session {session.id} closed after {self._handled_steps} steps")
            await self._tell_unspoken()
            await self._call_event_handler("on_session_ended", session.id, None)

    async def _converse(self, session: DuplexSession):
        """Hold the conversation; a fault of ours ends it in words, and frees the session."""
        try:
            await self._run_sessions(session)
        except Exception as e:
            logger.opt(exception=e).error(f"{self}: the conversation failed")
            self._session_task = None
            await self._close_session()
            await self.push_error(
                f"The conversation failed: {e}", exception=e, force_treat_as_permanent=True
            )

    async def _run_sessions(self, session: DuplexSession):
        """Hold the conversation, with a fresh session when one fails."""
        greeting = assert_given(self._settings.greeting)
        if greeting:
            self._given_words.wait_first(Saying(greeting))
        while True:
            self._session = self._given_words.session = session
            self._voice.begin_session(session)
            await self._apply_hold()
            logger.info(f"{self}: session {session.id} started")
            await self._call_event_handler("on_session_started", session.id)
            await self.trace_session(session.id)
            await self._say_waiting()
            self._input_task = self.create_task(self._user_side.run(session))
            try:
                async for step in session.steps():
                    await self._handle_step(step)
                    await self._announce_end(session)
                return
            except SessionEnded as e:
                fresh = await self._next_session(session, e)
            if fresh is None:
                return
            session = fresh

    async def _next_session(
        self, session: DuplexSession, error: SessionEnded
    ) -> DuplexSession | None:
        """Return the session that takes the place of one that ended; None if there is none."""
        if self._reopen_secs and not self._somebody_came.is_set():
            await self._end_unused_session(session, error)
            await self._somebody_came.wait()
            return await self._open_again()
        await self._end_failed_session(session, error)
        return None if self._limit_reached() else await self._reopen()

    async def _end_unused_session(self, session: DuplexSession, error: SessionEnded):
        """End a session in which nobody came. What was to be said waits for the caller."""
        await self._leave_session(session)
        self._given_words.take_back()
        logger.info(f"{self}: {error}; another one is opened when somebody comes")
        await self._call_event_handler("on_session_ended", error.session_id, error.reason)

    async def _leave_session(self, session: DuplexSession):
        self._session = self._given_words.session = None
        task, self._input_task = self._input_task, None
        if task:
            await self.cancel_task(task)
        await self._finish_turns()
        await session.close()

    async def _announce_end(self, session: DuplexSession):
        left_secs = session.secs_left
        if left_secs is None or left_secs > self._ending_notice_secs or self._end_announced:
            return
        self._end_announced = True
        logger.info(f"{self}: session {session.id} ends in {left_secs:.0f} s")
        await self._call_event_handler("on_session_ending", left_secs)

    async def _end_failed_session(self, session: DuplexSession, error: SessionEnded):
        await self._leave_session(session)
        over = self._limit_reached() or not self._reopen_secs
        await self.push_error(str(error), exception=error, force_treat_as_permanent=over)
        await self._tell_unspoken()
        await self._call_event_handler("on_session_ended", error.session_id, error.reason)

    def _limit_reached(self) -> bool:
        limit_secs = assert_given(self._settings.max_session_secs)
        return limit_secs is not None and self._handled_steps * STEP_SECS >= limit_secs

    async def _reopen(self) -> DuplexSession | None:
        """Open a fresh session, which begins at second 0; None if none can be had in time."""
        session = await self._open_again()
        if session is not None:
            self._begin_conversation()
            self._user_side.start()
        return session

    async def _open_again(self) -> DuplexSession | None:
        if self._backend is None or not self._reopen_secs:
            return None
        retry = Retry(self._reopen_secs, REOPEN)
        while True:
            try:
                return await self._open_session(self._backend)
            except (DuplexError, ValueError) as e:
                problem = e
            if not await retry.pause():
                await self.push_error(
                    f"Cannot open a fresh session: {problem}",
                    exception=problem,
                    force_treat_as_permanent=True,
                )
                return None

    #
    # words put in the agent's mouth
    #

    async def say(
        self, text: str, *, cut_in: bool = False, append_to_context: bool = True
    ) -> int | None:
        """Let the agent speak these words, in its own voice.

        They wait until the agent has finished its own utterance, and until the session is open. A
        user who barges in stops them like any other words; ``on_said`` tells which words were
        spoken.

        Args:
            text: What to say.
            cut_in: Do not wait. Words that are being said or queued are dropped.
            append_to_context: Whether the words go into the conversation's context.

        Returns:
            The utterance's number, as in ``MonologueTextFrame.utterance_id`` and ``on_said``;
            ``None`` if the words wait for a session.

        Raises:
            DuplexError: The model does not have these words, its server cannot do this, or the
                session is over.
        """
        saying = Saying(text, append_to_context)
        if self._voice.is_on:
            if cut_in:
                await self._voice.interrupted()
                await self.broadcast_interruption()
            await self._voice.say(saying)
            return None
        return await self._given_words.say(saying, self._session, cut_in=cut_in)

    async def hold(self, secs: float | None = None):
        """Keep the model's own words back for a while.

        Args:
            secs: For so long; ``None`` is until :meth:`release`. Given words are said meanwhile.
        """
        until_secs = math.inf if secs is None else self._handled_steps * STEP_SECS + secs
        self._hold_secs = until_secs
        await self._apply_hold()

    async def release(self):
        """Let the model say words of its own again, unless ``words`` is ``given``."""
        self._hold_secs = None
        await self._apply_hold()

    async def _apply_hold(self):
        held = self._upstream.keeps_own_words_back or self._hold_secs is not None
        if self._session is None or held == self._held:
            return
        self._held = held
        try:
            await self._session.hold(held)
        except SessionEnded:
            pass  # The next session is told.
        except (DuplexError, AttributeError) as e:
            await self.push_error(f"The model's own words cannot be kept back: {e}", exception=e)

    def _take_word_settings(self):
        words, voice = assert_given(self._settings.words), assert_given(self._settings.voice)
        if words is None:
            has_llm = self._delegation.is_frontend or llm_upstream_of(self)
            words = "given" if has_llm or voice == "tts" else "own"
        if voice is None:
            voice = "tts" if words == "given" and tts_downstream_of(self) else "own"
        self._voice.is_on = voice == "tts"
        mouth = self._voice if self._voice.is_on else self._given_words
        self._upstream.set_words(cast(Words, words), mouth)
        filler = assert_given(self._settings.filler)
        after_ms = assert_given(self._settings.filler_after_ms)
        self._upstream.filler.set(filler, DEFAULT_FILLER_AFTER_MS if after_ms is None else after_ms)

    async def say_filler(self, text: str) -> int | None:
        """Begin an answer with a filler; what cannot be said is an error frame."""
        if self._voice.is_on:
            return await self._voice.say_filler(text)
        return await self._try_to_say(Saying(text))

    async def can_say(self, text: str) -> CanSay:
        """Tell whether the model has the words of a text, without saying it.

        Args:
            text: The text.

        Returns:
            True if :meth:`say` would take it. Otherwise ``lacks`` holds the words that the model
            does not have, and ``reason`` tells why.

        Raises:
            DuplexError: There is no session.
        """
        if self._voice.is_on:
            return CanSay()
        if self._session is None:
            raise DuplexError("no session is open: nothing is known of the model's words")
        return await self._session.can_say(text)

    async def _try_to_say(self, saying: Saying) -> int | None:
        try:
            return await self.say(saying.text, append_to_context=saying.to_context)
        except DuplexError as e:
            await self.push_error(f"Cannot say {saying.text!r}: {e}", exception=e)

    async def _say_waiting(self):
        """Say what waited for a session."""
        for saying in self._given_words.take_waiting():
            await self._try_to_say(saying)

    async def _hear_given_words(self, step: Step):
        await self.tell_said(self._given_words.hear(step))

    async def _tell_unspoken(self):
        """Tell what the session was given and did not speak to its end."""
        await self.tell_said(self._given_words.end_session())

    async def tell_said(self, ended: Sequence[Said]):
        """Tell the bot what became of words that the agent was given."""
        for said in ended:
            if said.unsayable:
                words = ", ".join(map(repr, dict.fromkeys(said.unsayable)))
                logger.warning(f"{self}: the model does not have the words to say {words}")
            await self._call_event_handler("on_said", said)

    async def tell_transcript(self, text: str, start_secs: float, end_secs: float, kind: str):
        """Tell the bot what the user said, and when."""
        await self._call_event_handler("on_user_transcript", text, start_secs, end_secs, kind)

    async def _finish_given_words(self):
        """Let the agent finish what it was given before the conversation ends."""
        await self._upstream.finish(MAX_FINISH_SECS)
        if self._session is not None and not await self._given_words.finish(MAX_FINISH_SECS):
            logger.warning(f"{self}: ended before everything was said")

    #
    # frames in
    #

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Process a frame.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM and await self._upstream.take(frame):
            return
        if isinstance(frame, LLMContextFrame) and direction is FrameDirection.DOWNSTREAM:
            await self._take_context(frame.context)
            return
        if isinstance(frame, LLMContextFrame) and self._delegation.is_frontend:
            return  # The backend has been asked: nobody else is to be run.
        if isinstance(frame, LLMMessagesAppendFrame) and self._delegation.is_frontend:
            self._upstream.given.take_whole(self._delegation.take(frame))
        if isinstance(frame, TTSSpeakFrame) and direction is FrameDirection.DOWNSTREAM:
            # Also for a TTS: before anybody listens, it waits.
            await self._try_to_say(Saying(frame.text, bool(frame.append_to_context)))
            return
        if isinstance(frame, InputAudioRawFrame):
            self._somebody_came.set()
            self._user_side.put(frame)
        elif isinstance(frame, ClientConnectedFrame):
            # From here on somebody listens, muted or not: the conversation runs.
            self._somebody_came.set()
            self._user_side.start()
        elif isinstance(frame, SpeechControlParamsFrame) and frame.vad_params is not None:
            # A detector in front of the service tells of the user's voice: once is enough.
            self._vad_in_front = True
        elif isinstance(frame, BotStartedSpeakingFrame) and direction is FrameDirection.UPSTREAM:
            await self._voice.started()
        elif isinstance(frame, BotStoppedSpeakingFrame) and direction is FrameDirection.UPSTREAM:
            await self._voice.stopped()
        elif isinstance(frame, InterruptionFrame):
            self._interrupted = True
            await self._voice.interrupted()
            # At once: words that come after it belong to the next answer.
            await self._upstream.cut_off()
            self._upstream.desk.voice.cut_in()
            await self._given_words.hush(self._session)
        elif isinstance(frame, UserStartedSpeakingFrame):
            self._user_turn_opened.set()
        await self.push_frame(frame, direction)

    async def _take_context(self, context: LLMContext):
        """Hand what the user has said to the backend, if there is one."""
        if not self._delegation.is_frontend:
            self._leave_context(context)
            return
        call = self._delegation.call_of(context)
        if call is not None:
            await self.run_function_calls([call])

    def _leave_context(self, context: LLMContext):
        """Read no context: the model keeps its own memory. Say so if that loses something."""
        unread = unread_context(context)
        if unread and unread != self._unread_context:
            self._unread_context = unread
            logger.warning(f"{self}: the {unread} in the context have no effect on this model")

    #
    # steps out
    #

    async def _handle_step(self, step: Step):
        user, voice = await self._user_side.of(step.index)
        # From here on a step is known by its place in the user's audio, whatever was dropped.
        step = shift_words(step, user.place - step.index)
        if step.text_piece is not None:
            self._utterance_id = step.utterance_id
        self._due_secs = user.due_secs
        sound = self._agent_audio.take(step.index, step.pcm, self._now_secs(), user.due_secs)
        agent_level_db, gives_up = sound.level_db, False
        if self._voice.is_on:
            gives_up = await self._voice.step(step, user.level_db, agent_level_db)
            agent_level_db = self._voice.level_db
            # What the model tells meanwhile is neither heard nor read.
            step = replace(step, text_piece=None, utterance_id=None, said=())
        if self._interrupted:
            await self._handle_interrupted()
        await self._hear_given_words(step)
        if self._given_words.is_hushed:  # What still comes is not heard.
            agent_level_db = SILENCE_DB
            step = replace(step, text_piece=None, utterance_id=None)
        await self._push_word(self._monologue.feed(step.index, step.text_piece))
        events: list[TurnEvent] = []
        if self._voice.is_on and not self._voice.sounds:
            events += self._tracker.interrupt()  # A TTS that comes to an end gives up nothing.
        events += self._tracker.step(
            step.index,
            user=voice,
            user_level_db=user.level_db,
            agent_level_db=agent_level_db,
            agent_word=step.text_piece is not None,
            given_word=step.utterance_id is not None,
            can_be_cut=self._voice.sounds or self._given_words.is_saying(self._utterance_id),
        )
        if step.wish:
            events += self._tracker.hear_wish()
        if gives_up:
            events += self._tracker.give_up(self._voice.over_steps)
        for event in events:
            await self._handle_turn_event(event)
        await self._follow_floor(step)
        is_cut = any(isinstance(event, Yielded) and event.is_cut for event in events)
        if step.text_piece is not None and not is_cut:
            await self._push_monologue(step)
        if self._speaking and not self._voice.is_on:
            await self._push_audio(sound)
        await self._report_step(step)
        self._user_audio.note_answer()
        self._handled_steps += 1

    async def _follow_floor(self, step: Step):
        if self._hold_secs is not None and self._handled_steps * STEP_SECS >= self._hold_secs:
            await self.release()
        if self._user_turn_proposed or not self._response_goes_on():
            await self._end_response()
        await self._upstream.step(
            step,
            user_speaking=self._tracker.user_speaking,
            user_begins=self._tracker.user_begins,
            agent_speaking=self._tracker.agent_speaking,
        )

    async def _push_monologue(self, step: Step):
        assert step.text_piece is not None
        await self.push_frame(
            MonologueTextFrame(
                text=step.text_piece,
                token=step.text_token,
                step_index=step.index,
                time_secs=(step.index + 1) * STEP_SECS,
                utterance_id=step.utterance_id,
            )
        )

    async def _push_audio(self, sound: AgentSound):
        pcm = self._agent_audio.play(sound)
        if pcm is None:
            return
        frame = TTSAudioRawFrame(float_to_pcm16(pcm), self._agent_audio.rate_hz, 1)
        # Where the sound stands in the conversation, in nanoseconds of the user's audio.
        frame.pts = round((sound.place + 1) * STEP_SECS * 1e9)
        await self.push_frame(frame)

    async def _push_word(self, word: Word | None):
        """Push a word for clients and for the context; mark those that were not heard."""
        if word is None:
            return
        heard = not self._agent_audio.was_left_out(word.first_step)
        await self._push_captions(self._captions.feed(word, heard=heard))

    async def _push_captions(self, captions: Sequence[Caption]):
        for caption in captions:
            self._warn_of_unheard(caption)
            to_context = not self._given_words.is_aside(caption.first_step)
            from_llm = self._upstream.gave(self._utterance_id)
            for frame in caption_frames(caption, to_context=to_context, from_llm=from_llm):
                await self.push_frame(frame)

    def _warn_of_unheard(self, caption: Caption):
        if caption.unheard:
            logger.warning(f"{self}: came too late to be heard: {caption.unheard!r}")

    def _cut_word(self):
        """Drop the word at which the agent was cut off: what was not finished was not heard."""
        if self._monologue.end_utterance() is not None:
            self._given_words.leave_out_word(self._utterance_id)

    def _cut_captions(self):
        """End the utterance's captions where it was interrupted: no mark would arrive."""
        for caption in self._captions.end_utterance():
            self._warn_of_unheard(caption)

    #
    # turns
    #

    @property
    def session(self) -> DuplexSession | None:
        """The session that is open."""
        return self._session

    @property
    def given_words(self) -> GivenWords:
        """What the agent was asked to say."""
        return self._given_words

    @property
    def utterance_id(self) -> int | None:
        """The utterance of given words that was heard last."""
        return self._voice.number if self._voice.is_on else self._utterance_id

    @property
    def agent_is_speaking(self) -> bool:
        """Whether an utterance of the agent is open."""
        return self._tracker.agent_speaking

    @property
    def _uttered(self) -> str:
        """What the agent says: of a TTS, what it was given."""
        return self._voice.text.strip() if self._voice.is_on else self._monologue.utterance

    @property
    def user_turn_is_open(self) -> bool:
        """Whether a turn of the user was proposed, and not its end."""
        return self._user_turn_proposed

    async def _handle_turn_event(self, event: TurnEvent):
        self._upstream.hear(event, self._voice.text if self._voice.is_on else self._captions.text)
        if isinstance(event, UserStarted):
            await self._handle_user_started(event)
        elif isinstance(event, UserStopped):
            await self._handle_user_stopped(event)
        elif isinstance(event, AgentStarted):
            await self._handle_agent_started(event)
        elif isinstance(event, Yielded):
            await self._handle_yield(event)
        elif isinstance(event, AgentStopped):
            await self._handle_agent_stopped(event)
        elif isinstance(event, Backchannel):
            await self.broadcast_frame(
                BackchannelFrame, time_secs=event.time_secs, duration_secs=event.duration_secs
            )
            await self._call_event_handler("on_backchannel", event)

    async def _handle_user_started(self, event: UserStarted):
        if not self._vad_in_front:
            await self.broadcast_frame(
                VADUserStartedSpeakingFrame,
                start_secs=event.voice_secs,
                timestamp=self._wall_secs(),
            )
        # Over the agent it may be a backchannel. Observers take any user turn that opens while
        # the agent speaks for an interruption, so the turn waits for the yield.
        if not event.over_agent:
            await self._end_response()
            await self._propose_user_turn()
        await self.cancel_ttfb_metrics()
        await self._call_event_handler("on_user_started", event)

    async def _handle_user_stopped(self, event: UserStopped):
        noticed_secs = self._wall_secs()
        if not self._vad_in_front:
            await self.broadcast_frame(
                VADUserStoppedSpeakingFrame, stop_secs=event.quiet_secs, timestamp=noticed_secs
            )
        if not self._upstream.waits_for_wish:
            await self.end_user_turn()
        if not self._speaking:
            await self.start_ttfb_metrics(start_time=noticed_secs - event.quiet_secs)
        await self._call_event_handler("on_user_stopped", event)

    async def _handle_agent_started(self, event: AgentStarted):
        await self.stop_ttfb_metrics()
        await self.start_processing_metrics()
        self._speaking = True
        if not self._pauses:
            self._monologue.begin_utterance()
            self._captions.begin_utterance()
            self._brackets_llm = not self._upstream.writes(self._utterance_id)
        self._pauses = False
        if not self._voice.is_on:
            await self._open_brackets()
        await self._call_event_handler("on_agent_started", event)

    async def _handle_yield(self, event: Yielded):
        if event.is_cut:
            self._cut_word()
        text = self._uttered
        self._cut_captions()
        await self._upstream.cut_off()
        await self._given_words.hush(self._session)
        await self._voice.interrupted()
        if not self._user_turn_proposed:
            await self._propose_user_turn()
            await self._wait_for_user_turn()
        await self.broadcast_frame(
            AgentYieldedFrame, text=text, time_secs=event.time_secs, delay_secs=event.delay_secs
        )
        await self.broadcast_interruption()
        self._agent_audio.flush()
        await self._call_event_handler("on_yield", event, text)

    async def _handle_agent_stopped(self, event: AgentStopped):
        await self._push_word(self._monologue.end_utterance(event.step_index))
        await self._push_captions(self._captions.end_utterance())
        self._agent_audio.end_utterance()
        self._given_words.end_utterance()
        self._pauses = not event.yielded and self._response_goes_on()
        await self._close_brackets()
        if not self._tracker.user_speaking:
            if not self._upstream.waits_for_wish:
                await self.end_user_turn()
        elif not self._user_turn_proposed:
            # The user spoke over the agent's last words and goes on: their turn now.
            await self._propose_user_turn()
        text = self._uttered
        await self.trace_utterance(text, yielded=event.yielded)
        await self._call_event_handler("on_agent_stopped", event, text)

    async def _handle_interrupted(self):
        """Somebody else broadcast an interruption: what was pushed is gone."""
        self._interrupted = False
        self._agent_audio.flush()
        self._cut_word()
        self._cut_captions()
        for event in self._tracker.interrupt():
            await self._handle_turn_event(event)

    async def _finish_turns(self):
        for event in self._tracker.finish():
            await self._handle_turn_event(event)

    async def _propose_user_turn(self):
        if self._user_turn_proposed:
            return
        self._user_turn_proposed = True
        self._upstream.turn_began()
        self._user_turn_opened.clear()
        await self.broadcast_frame(ProposedUserStartedSpeakingFrame)

    async def _wait_for_user_turn(self):
        try:
            await asyncio.wait_for(self._user_turn_opened.wait(), USER_TURN_TIMEOUT_SECS)
        except TimeoutError:
            logger.debug(f"{self}: no user aggregator opened the user's turn")

    async def end_user_turn(self):
        """Propose the end of the user's turn, if one is open."""
        if self._user_turn_proposed:
            self._user_turn_proposed = False
            self._upstream.turn_ended()
            await self.broadcast_frame(ProposedUserStoppedSpeakingFrame)

    async def _open_brackets(self):
        if self._brackets_llm:
            await self.push_frame(LLMFullResponseStartFrame())
        await self.push_frame(TTSStartedFrame())

    async def _close_brackets(self):
        if not self._speaking:
            return
        self._speaking = False
        await self.stop_processing_metrics()
        if self._voice.is_on:
            return
        await self.push_frame(TTSStoppedFrame())
        if self._brackets_llm:
            await self.push_frame(LLMFullResponseEndFrame())
        elif not self._pauses:
            await self.push_frame(LLMAssistantPushAggregationFrame())

    def _response_goes_on(self) -> bool:
        """Whether given words, which are one message in the context, are to go on."""
        number = self.utterance_id
        if self._upstream.filler.is_open(number):
            return True
        if self._brackets_llm or self._voice.is_on:
            return False
        return self._upstream.is_open(number) or self._given_words.is_saying(number)

    async def _end_response(self):
        """Let the context have what was said before a pause, after which nothing came."""
        if self._pauses and not self._speaking:
            self._pauses = False
            self._upstream.message_ended()
            await self.push_frame(LLMAssistantPushAggregationFrame())

    def _wall_secs(self) -> float:
        """Return the wall-clock time at which the user's side of this step had been spoken."""
        return time.time() - (self._now_secs() - self._due_secs)

    #
    # metrics
    #

    async def _report_step(self, step: Step):
        if not self.metrics_enabled:
            return
        self._step_timings.append(step.timing)
        if len(self._step_timings) < METRICS_STEPS:
            return
        timings, self._step_timings = self._step_timings, []
        data = DuplexMetricsData(
            processor=self.name,
            model=self._checkpoint,
            steps=len(timings),
            compute_secs=sum(t.compute_secs for t in timings) / len(timings),
            max_compute_secs=max(t.compute_secs for t in timings),
            max_waited_secs=max(t.waited_secs for t in timings),
            lag_secs=self.lag_secs,
            filled_steps=self._user_audio.filled_steps,
            dropped_input_steps=self._user_audio.dropped_steps,
            dropped_output_steps=self._agent_audio.dropped_steps,
        )
        await self.push_frame(MetricsFrame(data=[data]))


def _chosen_checkpoint(
    checkpoint: str | None, settings: LLMSettings | None, *, loads_model: bool
) -> str:
    """Return the model's name: the argument, the setting, or the default."""
    model = settings.model if settings is not None and is_given(settings.model) else None
    if model is None or model == checkpoint:
        return checkpoint or DEFAULT_CHECKPOINT
    if not loads_model:
        raise ValueError(
            f"Settings(model={model!r}) selects the checkpoint that the service loads; this one "
            "gets its sessions from a backend or a server, and the model is chosen there"
        )
    if checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint!r} and Settings(model={model!r}) are two models")
    return model


def _import_engine():
    from pipecat_duplex.engine import Engine

    return Engine


def _load_activity(analyzer: VADAnalyzer | None) -> UserActivity:
    if analyzer is None:
        from pipecat_duplex.service.voice_detector import VoiceDetector

        analyzer = VoiceDetector()
    return UserActivity(analyzer)
