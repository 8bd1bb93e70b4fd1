"""The engine's thread: it gathers the frames that are there and steps the model."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from pipecat_duplex.conversation.loudness import SILENT_STEP, Spectra
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.user_ear import USER_LEVEL_DB
from pipecat_duplex.engine.barge_in import BargeInNetwork
from pipecat_duplex.engine.ears import Ears
from pipecat_duplex.engine.faults import options_of, step_apart
from pipecat_duplex.engine.long_calls import (
    Candidate,
    Limits,
    LongCalls,
    Rebuilds,
    Recollection,
)
from pipecat_duplex.engine.model import NONE_HEARD, Loaded, PhoneCodes, SlotOutput, StepModel
from pipecat_duplex.engine.phones import PhoneHearing
from pipecat_duplex.engine.preparation import PARTS_SECS, Preparation, Preparations
from pipecat_duplex.engine.session import EngineSession, Frame
from pipecat_duplex.engine.stats import StepRecorder
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    BackendHealth,
    CheckpointError,
    DuplexError,
    Step,
    StepTiming,
)

MAX_FAILURES = 3
"""Failed steps in a row after which the engine gives up."""

BEAT_SECS = 0.5
"""How often an idle thread shows that it is alive."""

STUCK_SECS = 1.5
"""A thread that has shown nothing for so long, or a step that takes so long, is called stuck."""

LISTEN_SECS = STEP_SECS / 2
"""While frames wait, a step and one of the recogniser may take so long together: a backlog is then
worked off at twice real time, as without one."""

BEHIND_SECS = 0.04
"""With a frame that has waited for so long, long calls are to wait."""

MAX_SKIPPED = 3
"""Turns that long calls wait for, at most: an engine that is always behind still rebuilds them."""

_SILENCE = np.zeros(STEP_SAMPLES, np.float32)

Batch = dict[int, tuple[EngineSession, Frame]]
"""Who takes part in a step, by slot."""


class Letter(NamedTuple):
    """A call of a session's method that is to be made on its asyncio loop.

    Parameters:
        session: The session.
        method: Its method.
        argument: What the method is given: a step, the reason of an end, a preparation.
    """

    session: EngineSession
    method: Callable[[Any], None]
    argument: Any


class Heard(NamedTuple):
    """What is heard of users beside the model.

    Parameters:
        unheeded: Slots whose users make a sound that is kept from the model.
        phones: By slot, the code of what is said, where a network hears that.
    """

    unheeded: set[int]
    phones: PhoneCodes


class WordChooser:
    """Asks the sessions of a step for their words. Asked again about a slot, it repeats itself."""

    def __init__(self, batch: Batch):
        """Initialize for one step.

        Args:
            batch: Who takes part in it.
        """
        self._speakers = {slot: session.speaker for slot, (session, _) in batch.items()}
        self._chosen: dict[int, int] = {}
        self.faults: dict[int, Exception] = {}

    @property
    def is_needed(self) -> bool:
        """Whether anybody has words to be said."""
        return any(speaker.is_active for speaker in self._speakers.values())

    def __call__(self, slot: int, sampled: int) -> int:
        """Return the token that a slot says in place of the one that was sampled."""
        if slot not in self._chosen:
            try:
                self._chosen[slot] = self._speakers[slot].choose(sampled)
            except Exception as error:
                self.faults[slot] = error
                self._chosen[slot] = sampled
        return self._chosen[slot]


class StepLoop:
    """Seats sessions in slots and steps them in a thread of its own.

    Sessions take and leave seats from asyncio at any time; the thread follows between two steps.
    What both sides touch (seats, stopping, the failure) is guarded by one condition.
    """

    def __init__(
        self,
        load_model: Callable[[], StepModel],
        slots: int,
        gather_secs: float,
        long_calls: LongCalls = "ring",
        load_barge_in: Callable[[], BargeInNetwork | None] = lambda: None,
        load_phones: Callable[[], PhoneHearing | None] = lambda: None,
    ):
        """Initialize; ``start`` begins.

        Args:
            load_model: Loads the model, called in the thread.
            slots: Number of seats.
            gather_secs: How long a step waits for neighbours that have no frame yet.
            long_calls: What becomes of calls longer than the model's context.
            load_barge_in: Loads what hears barge-ins beside the model, called in the thread.
            load_phones: Loads what hears phones beside the codec, called in the thread.
        """
        self.recorder = StepRecorder()
        self.failure: str | None = None
        self._load_model = load_model
        self._load_barge_in = load_barge_in
        self._load_phones = load_phones
        self._gather_secs = gather_secs
        self._long_calls: LongCalls = long_calls
        self._condition = threading.Condition()
        self._seats: list[EngineSession | None] = [None] * slots
        self._stopping = False
        self._loaded: Future[Loaded] = Future()
        self._thread = threading.Thread(target=self._run, name="duplex-engine", daemon=True)
        # Written by the thread, read by any: since when a step runs, and signs of life.
        self._step_began_secs: float | None = None
        self._stepped_at_secs = self._beat_at_secs = time.perf_counter()
        # The rest belongs to the thread.
        self._seated: list[EngineSession | None] = [None] * slots
        self._failures_in_a_row = 0
        self._recollections: dict[int, Recollection] = {}
        self._turns_skipped = 0
        self._ears: Ears | None = None
        self._spectra = Spectra(slots)
        self._barge_in: BargeInNetwork | None = None
        self._phones: PhoneHearing | None = None
        self._compute_secs = self._listen_secs = 0.0

    def start(self) -> Future[Loaded]:
        """Start the thread; the future tells what was loaded, once steps can begin."""
        self._thread.start()
        return self._loaded

    def stop(self, reason: str) -> None:
        """End every session, and the thread after its step. May be called any number of times."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
            sessions = self._clear_seats()
        self._post([Letter(session, session.end, reason) for session in sessions])

    def join(self) -> None:
        """Wait for the thread. Blocks."""
        self._thread.join()

    def take_seat(self, session: EngineSession) -> bool:
        """Seat a session, if a slot is free."""
        with self._condition:
            if self._is_over() or None not in self._seats:
                return False
            self._seats[self._seats.index(None)] = session
            return True

    def leave_seat(self, session: EngineSession) -> bool:
        """Free the seat of a session, if it has one."""
        with self._condition:
            if session not in self._seats:
                return False
            self._seats[self._seats.index(session)] = None
            return True

    def count_free(self) -> int:
        """Count the free seats."""
        return self._seats.count(None)

    def health(self) -> BackendHealth:
        """Tell how the thread is. Takes no lock: the holder of a lock may be stuck."""
        if self.failure is not None:
            return BackendHealth(False, f"the engine has failed: {self.failure}")
        if self._stopping or not self._thread.is_alive():
            return BackendHealth(False, "the engine was closed")
        now_secs = time.perf_counter()
        waited_secs = self._step_waited_secs(now_secs)
        lag_secs = max(0.0, waited_secs - STEP_SECS)
        silent_secs = 0.0 if waited_secs else now_secs - self._beat_at_secs
        if waited_secs >= STUCK_SECS:
            reason = f"a step has not come back for {waited_secs:.1f} s"
        elif silent_secs >= STUCK_SECS:
            reason = f"the engine has done nothing for {silent_secs:.1f} s"
        else:
            return BackendHealth(True, lag_secs=lag_secs)
        return BackendHealth(False, reason, lag_secs, stuck=True)

    def _step_waited_secs(self, now_secs: float) -> float:
        """Return how long a step has been computed, or has been due; 0 if none is."""
        began_secs = self._step_began_secs
        if began_secs is not None:
            return now_secs - began_secs
        due_secs = now_secs
        for session in list(self._seats):
            if session is None or session.is_preparing:
                continue
            try:
                due_secs = min(due_secs, session.waiting[0].sent_at_secs)
            except IndexError:
                pass  # nothing waits, or the session ends at this moment
        # Frames that were sent ahead of time wait for those before them: progress counts.
        return now_secs - max(due_secs, min(now_secs, self._stepped_at_secs))

    def wake(self) -> None:
        """Tell the thread that a frame is waiting."""
        with self._condition:
            self._condition.notify()

    def _run(self) -> None:
        if not self._loaded.set_running_or_notify_cancel():
            return
        try:
            model = self._load_model()
            self._barge_in = self._load_barge_in()
            self._phones = self._load_phones()
        except Exception as error:
            self._loaded.set_exception(_load_error(error))
            return
        with model.running():
            try:
                model.warm_up()
            except Exception as error:
                self._loaded.set_exception(_load_error(error))
                return
            self._stepped_at_secs = self._beat_at_secs = time.perf_counter()
            self._loaded.set_result(Loaded(model.summary, model.vocabulary))
            context = model.summary.context_steps
            self._limits = Limits.of(context) if self._long_calls == "rebuild" else None
            self._preparations = Preparations(model, self._limits)
            self._rebuilds = Rebuilds(model)
            recognizer = model.recognizer
            self._ears = None if recognizer is None else Ears(recognizer)
            try:
                while (batch := self._gather()) is not None:
                    if batch:
                        self._step(model, batch)
                        self._step_began_secs = None
                    self._listen()
                    self._prepare(model)
                    self._rebuild()
            except Exception as error:
                logger.exception("The engine's loop failed")
                self._give_up(f"the engine failed: {_describe(error)}")

    def _gather(self) -> Batch | None:
        """Wait for frames and take one from each session that has one; None is the end."""
        with self._condition:
            while not self._condition.wait_for(
                lambda: self._is_over() or self._has_work() or self._has_frame(any),
                timeout=BEAT_SECS,
            ):
                self._beat_at_secs = time.perf_counter()
            self._beat_at_secs = time.perf_counter()
            if self._gather_secs and self._has_frame(any) and not self._has_preparation():
                self._condition.wait_for(
                    lambda: self._is_over() or self._has_frame(all), timeout=self._gather_secs
                )
            if self._is_over():
                return None
            seats = list(self._seats)
        batch: Batch = {}
        for slot, session in enumerate(seats):
            # A session that ends at this moment clears its frames, at no cost to the others.
            try:
                if session is not None and not session.is_preparing:
                    batch[slot] = (session, session.waiting.popleft())
            except IndexError:
                pass
        return batch

    def _step(self, model: StepModel, batch: Batch) -> None:
        """Take a step. A fault of one session ends that session, and no other."""
        began_secs = self._step_began_secs = time.perf_counter()
        self._follow_seats(model, batch)
        # What is chosen in this step is given out in the next.
        spoken = {slot: session.speaker.take_spoken() for slot, (session, _) in batch.items()}
        words = WordChooser(batch)
        heard = {slot: _hear(session, frame) for slot, (session, frame) in batch.items()}
        unheeded, phones = self._hear_users(batch, heard)
        try:
            outputs, faults = self._compute(model, batch, heard, phones, words)
        except Exception as error:
            logger.opt(exception=error).error("A step of the engine failed")
            self._recover(model, error)
            return
        self._stepped_at_secs = time.perf_counter()
        compute_secs = self._compute_secs = self._stepped_at_secs - began_secs
        letters: list[Letter] = []
        for slot, output in outputs.items():
            session, frame = batch[slot]
            try:
                token = output.text_token
                session.speaker.observe(token, level_db(output.pcm), level_db(heard[slot]))
                computed = Step(
                    frame.step_index,
                    output.pcm,
                    token,
                    model.vocabulary.piece(token),
                    StepTiming(began_secs - frame.sent_at_secs, compute_secs),
                    spoken[slot].utterance_id,
                    spoken[slot].said,
                    None if output.is_silence else output.tokens,
                    spoken[slot].wish,
                    () if self._ears is None else self._ears.take_words(slot),
                    slot in unheeded,
                )
                step = session.speaker.sound(computed)
                if session.echo is not None:
                    session.echo.play(step.pcm)
                letters.append(Letter(session, session.deliver, step))
                if slot in self._recollections:
                    self._recollections[slot].take(step.tokens)
                if self._ears is not None and output.sound is not None:
                    self._ears.hear(slot, frame.step_index, output.sound)
            except Exception as error:
                faults[slot] = error
        if outputs:
            self._failures_in_a_row = 0
            self.recorder.add_step(compute_secs, len(outputs))
        self._post(letters)
        model.keep()
        for slot, error in (faults | words.faults).items():
            self._expel(model, slot, batch[slot][0], error)

    def _hear_users(self, batch: Batch, heard: dict[int, np.ndarray]) -> Heard:
        """Hear users beside the model, and give up the floor before its next words.

        While an agent speaks, its model hears the user where they seem to want the floor.

        Args:
            batch: Who steps.
            heard: The user's audio by slot; what is kept from the model becomes silence in it.
        """
        if not heard or (self._barge_in is None and self._phones is None):
            return Heard(set(), NONE_HEARD)
        mels = self._spectra.of(heard)
        unheeded: set[int] = set()
        # It hears all that is said: once it knows a voice and its line, it is sooner sure.
        overlaps = {} if self._barge_in is None else self._barge_in.hear(mels)
        for slot, overlap in overlaps.items():
            session, frame = batch[slot]
            if session.speaker.hear(overlap):
                continue
            heard[slot], mels[slot] = _SILENCE, SILENT_STEP
            if level_db(frame.pcm) >= USER_LEVEL_DB:
                unheeded.add(slot)
        return Heard(unheeded, NONE_HEARD if self._phones is None else self._phones.hear(mels))

    def _listen(self) -> None:
        """Recognise what the user said, as far as no step of a conversation waits for it.

        While nobody's frame waits there is time. Otherwise the recogniser takes a turn if that
        keeps the engine in real time: nobody has a backlog, or a step and a turn are short enough
        to work it off.
        """
        ears = self._ears
        if ears is None:
            return
        while ears.behind_steps and self._may_listen():
            began_secs = time.perf_counter()
            ears.listen()
            self._listen_secs = time.perf_counter() - began_secs
            if self._has_preparation():
                break  # It takes turns with those who wait for their beginning.
        self.recorder.note_hearing(ears.behind_steps, ears.dropped_steps)

    def _may_listen(self) -> bool:
        ready = (s for s in list(self._seats) if s is not None and not s.is_preparing)
        waiting = [len(session.waiting) for session in ready]
        most = max(waiting, default=0)
        if not most:
            return True
        turn_secs = self._compute_secs + self._listen_secs
        return turn_secs <= (STEP_SECS if most == 1 else LISTEN_SECS)

    def _compute(
        self,
        model: StepModel,
        batch: Batch,
        frames: dict[int, np.ndarray],
        phones: PhoneCodes,
        words: WordChooser,
    ) -> tuple[dict[int, SlotOutput], dict[int, Exception]]:
        """Run the model; return its outputs, and what it raised for sessions that it fails for.

        Raises:
            Exception: The model fails for every session.
        """
        known = {s: frame.tokens for s, (_, frame) in batch.items() if frame.tokens is not None}
        options = options_of(frames, known, phones)
        choose_word = words if words.is_needed else None
        try:
            return model.step(frames, choose_word, **options), {}
        except Exception as error:
            logger.warning(f"A step of the engine failed and is taken again: {_describe(error)}")
            self.recorder.add_failure()
        model.undo()
        return step_apart(model, frames, choose_word, **options)

    def _prepare(self, model: StepModel) -> None:
        """Do a part of what is to be done in slots before their first step, and let others step."""
        with self._condition:
            waiting = {s: each for s, each in enumerate(self._seats) if each and each.is_preparing}
        wanted: dict[int, Preparation] = {}
        for slot, session in waiting.items():
            preparation = session.preparation
            if preparation is not None and self._join(model, slot, session):
                wanted[slot] = preparation
        finished = self._preparations.run(wanted, self._is_nobody_talking)
        slots = {id(preparation): slot for slot, preparation in wanted.items()}
        letters: list[Letter] = []
        for preparation in finished:
            slot = slots[id(preparation)]
            session = waiting[slot]
            letters.append(Letter(session, session.finish_preparation, preparation))
            if slot in self._recollections and preparation.error is None:
                self._recollections[slot].begin(preparation.frames, preparation.history)
            if self._ears is not None and preparation.sounds is not None:
                self._ears.recall(slot, preparation.sounds)
        self._post(letters)

    def _rebuild(self) -> None:
        """Do a part of what long calls need, unless a call waits for its beginning."""
        if self._limits is None or self._has_preparation():
            return
        if self._turns_skipped < MAX_SKIPPED and self._is_behind():
            self._turns_skipped += 1
            return
        self._turns_skipped = 0
        candidates = {
            slot: Candidate(session.id, self._recollections[slot], session.speaker.silent_steps)
            for slot, session in enumerate(self._seated)
            if session is not None and self._seats[slot] is session and slot in self._recollections
        }
        self.recorder.add_rebuilds(self._rebuilds.run(candidates, PARTS_SECS))

    def _join(self, model: StepModel, slot: int, session: EngineSession) -> bool:
        """Let a session's conversation begin in its slot, if it has not yet.

        Returns:
            False if the model fails for it: the session is ended.
        """
        if self._seated[slot] is not session:
            try:
                model.join(slot, session.config)
            except Exception as error:
                self._expel(model, slot, session, error)
                return False
            self._seated[slot] = session
            self._spectra.join(slot)
            for network in (self._barge_in, self._phones):
                if network is not None:
                    network.join(slot)
            if self._ears is not None:
                self._ears.join(slot, session.id)
            if self._limits is not None:
                self._recollections[slot] = Recollection(self._limits)
        return True

    def _follow_seats(self, model: StepModel, batch: Batch) -> None:
        """Let the model know who sits where; a conversation joins with its first frame."""
        for slot, (session, _) in list(batch.items()):
            if not self._join(model, slot, session):
                del batch[slot]
        for slot, session in enumerate(self._seated):
            if session is not None and self._seats[slot] is not session and slot not in batch:
                self._leave(model, slot)

    def _leave(self, model: StepModel, slot: int) -> None:
        model.leave(slot)
        self._seated[slot] = None
        if self._ears is not None:
            self._ears.leave(slot)

    def _expel(self, model: StepModel, slot: int, session: EngineSession, error: Exception) -> None:
        """End one session that something failed for."""
        logger.opt(exception=error).error(f"Session {session.id} is ended: a step failed for it")
        self.leave_seat(session)
        self._leave(model, slot)
        reason = f"a step of the engine failed for it: {_describe(error)}"
        self._post([Letter(session, session.end, reason)])

    def _recover(self, model: StepModel, error: Exception) -> None:
        """End every session: the model fails for all of them."""
        self._failures_in_a_row += 1
        reason = f"a step of the engine failed: {_describe(error)}"
        if self._failures_in_a_row >= MAX_FAILURES:
            self._give_up(f"{MAX_FAILURES} steps in a row failed, the last with {_describe(error)}")
            return
        self._end_all(reason)
        try:
            model.restart()
        except Exception as restart_error:
            logger.opt(exception=restart_error).error("The engine cannot recover")
            self._give_up(f"{reason}, and it could not recover: {_describe(restart_error)}")

    def _give_up(self, reason: str) -> None:
        with self._condition:
            self.failure = reason
        logger.error(f"The engine gives up: {reason}")
        self._end_all(reason)

    def _end_all(self, reason: str) -> None:
        with self._condition:
            sessions = self._clear_seats()
        self._seated = [None] * len(self._seats)
        self._preparations.clear()
        self._rebuilds.clear()
        if self._ears is not None:
            self._ears.clear()
        self._post([Letter(session, session.end, reason) for session in sessions])

    def _post(self, letters: list[Letter]) -> None:
        """Hand out a step's results with one call into each asyncio loop, usually the only one."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Letter]] = defaultdict(list)
        for letter in letters:
            by_loop[letter.session.loop].append(letter)
        for loop, its_letters in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_out, its_letters)
            except RuntimeError:  # that loop is closed: nobody is left to listen
                for letter in its_letters:
                    self.leave_seat(letter.session)

    def _clear_seats(self) -> list[EngineSession]:
        sessions = [session for session in self._seats if session is not None]
        self._seats = [None] * len(self._seats)
        return sessions

    def _is_over(self) -> bool:
        return self._stopping or self.failure is not None

    def _has_frame(self, quantify: Callable[..., bool]) -> bool:
        ready = (s for s in self._seats if s is not None and not s.is_preparing)
        return quantify(bool(session.waiting) for session in ready)

    def _has_preparation(self) -> bool:
        return any(s is not None and s.is_preparing for s in self._seats)

    def _has_work(self) -> bool:
        is_owed_words = self._ears is not None and self._ears.behind_steps > 0
        return self._has_preparation() or self._rebuilds.is_busy or is_owed_words

    def _is_behind(self) -> bool:
        """Whether a frame has waited for so long that the engine has no time to spare."""
        latest_secs = time.perf_counter() - BEHIND_SECS
        for session in list(self._seats):
            try:
                if session is not None and session.waiting[0].sent_at_secs < latest_secs:
                    return True
            except IndexError:
                pass  # nothing waits, or the session ends at this moment
        return False

    def _is_nobody_talking(self) -> bool:
        talking = (s for s in self._seats if s is not None and not s.is_preparing)
        return not any(session.steps_sent for session in talking)


def _hand_out(letters: list[Letter]) -> None:
    for session, method, argument in letters:
        try:
            method(argument)
        except Exception as error:
            logger.opt(exception=error).error(f"Session {session.id} is ended")
            session.end(f"its step could not be handed out: {_describe(error)}")


def _load_error(error: Exception) -> Exception:
    """Return what is told of a model that cannot be loaded, or not run once."""
    if isinstance(error, DuplexError | ValueError):
        return error
    told = CheckpointError(f"the checkpoint cannot be run: {_describe(error)}")
    told.__cause__ = error
    return told


def _hear(session: EngineSession, frame: Frame) -> np.ndarray:
    """Return what the model is to hear of a frame: without the agent's own voice."""
    return frame.pcm if session.echo is None else session.echo.hear(frame.pcm)


def _describe(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
