"""Calls that outlast what the language model looks back on.

Past its context, a model forgets a call's beginning step by step, and a persona with it. A
*rebuild* lets it read the persona and the last steps anew, beside the running call, and then takes
what came of it in the place of what the model remembers. Between two rebuilds nothing is forgotten.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from loguru import logger

from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.session.history import STREAMS, History

LongCalls = Literal["ring", "rebuild"]
"""What becomes of calls longer than the context: forget step by step, or rebuild."""

LONG_CALLS: tuple[LongCalls, ...] = ("ring", "rebuild")

SILENT_STEPS = 6
"""Steps in which neither side speaks, before a rebuild begins (half a second)."""

SILENT_SHARE = 0.7
"""Of the context: once so much is filled, a rebuild begins at a silence."""

LATEST_SHARE = 0.95
"""Once so much is filled it begins in any case."""

REBUILT_SHARE = 0.35
"""So much is filled after a rebuild, persona included."""

LEAST_STEPS_SHARE = 0.125
"""So much of the last steps is read whatever a persona takes."""

LONGEST_PERSONA_SHARE = 0.4
"""A persona that takes more would be rebuilt without end."""


class Limits(NamedTuple):
    """When a rebuild is due, and what is read then, in steps.

    Parameters:
        context: What the model looks back on.
        silent: Filled so far, it begins at a silence.
        latest: Filled so far, it begins in any case.
        rebuilt: Filled after it.
        least: Of these, the last steps of the call at least.
        persona: The longest persona.
    """

    context: int
    silent: int
    latest: int
    rebuilt: int
    least: int
    persona: int

    @classmethod
    def of(cls, context: int) -> "Limits":
        """Return the limits of a model that looks back on so many steps."""
        shares = (SILENT_SHARE, LATEST_SHARE, REBUILT_SHARE, LEAST_STEPS_SHARE)
        return cls(context, *(round(share * context) for share in (*shares, LONGEST_PERSONA_SHARE)))

    def last_steps(self, persona: np.ndarray | None) -> int:
        """Return how many of a call's last steps are read beside its persona."""
        taken = 0 if persona is None else persona.shape[1]
        return max(self.rebuilt - taken, self.least)

    def shorten(self, persona: np.ndarray | None, history: History) -> History:
        """Return as much of a history as a call begins with that goes on from it.

        What is left out is as if it had never been: the persona comes right before the rest.
        """
        taken = 0 if persona is None else persona.shape[1]
        if not history.complete or taken + history.steps > self.silent:
            history = history.last(self.last_steps(persona))
        return History(history.fingerprint, history.codes, True, history.audio)


class Recollection:
    """What is kept of one call, so that it can be rebuilt: 17 numbers a step."""

    def __init__(self, limits: Limits):
        """Initialize before the first step.

        Args:
            limits: Of the model.
        """
        self.persona: np.ndarray | None = None
        self.filled = 0
        self.failed = False
        self._limits = limits
        self._codes = np.zeros((limits.context, STREAMS), np.int32)
        self._count = 0
        self._first = 0

    def begin(self, persona: np.ndarray | None, history: History | None) -> None:
        """Take note of what the slot was prepared with.

        Args:
            persona: Frames, shape ``(17, frames)``.
            history: What was read of it.
        """
        self.persona, self._count = persona, 0
        frames = 0 if persona is None else persona.shape[1]
        for tokens in () if history is None else history.codes.T:
            self._keep(tokens)
        self.filled = frames + self._count + 1

    def take(self, tokens: np.ndarray | None) -> None:
        """Take a step's tokens, shape ``(17,)``; the very first step has none."""
        self.filled += 1
        if tokens is not None:
            self._keep(tokens)

    def is_due(self, silent_steps: int) -> bool:
        """Whether a rebuild should begin.

        Args:
            silent_steps: For how many steps neither side has spoken.
        """
        if self.failed or self.filled < self._limits.silent:
            return False
        return silent_steps >= SILENT_STEPS or self.filled >= self._limits.latest

    def begin_rebuild(self) -> None:
        """Choose from which step on the call is to be remembered."""
        self._first = max(0, self._count - self._limits.last_steps(self.persona))

    @property
    def is_kept(self) -> bool:
        """Whether all steps are still there that a rebuild began with."""
        return self._count - self._first <= len(self._codes)

    def known(self) -> Prefix:
        """Return what is to be remembered, up to the last step."""
        steps = np.arange(self._first, self._count) % len(self._codes)
        codes = self._codes[steps].T
        if self.persona is not None:
            codes = np.concatenate([self.persona, codes], axis=1)
        return Prefix(codes)

    def finish_rebuild(self) -> None:
        """Take note that the call is remembered from there on."""
        self.filled = self.known().frames + 1

    def _keep(self, tokens: np.ndarray) -> None:
        self._codes[self._count % len(self._codes)] = tokens
        self._count += 1


class Candidate(NamedTuple):
    """A running call.

    Parameters:
        session_id: Its session, for logs.
        recollection: What is kept of it.
        silent_steps: For how many steps neither side has spoken.
    """

    session_id: str
    recollection: Recollection
    silent_steps: int


class _Job(NamedTuple):
    slot: int
    candidate: Candidate
    parts: Iterator[None]


class Rebuilds:
    """Rebuilds one call after another, a part at a time. Belongs to the engine's thread.

    One at a time needs memory for one. Whoever has filled most of the context comes first; a call
    that has to wait forgets its oldest steps meanwhile, as it would without.
    """

    def __init__(self, model: StepModel):
        """Initialize with nothing to do.

        Args:
            model: Whose slots are rebuilt.
        """
        self._model = model
        self._job: _Job | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a rebuild has begun and is not done."""
        return self._job is not None

    def run(self, candidates: Mapping[int, Candidate], secs: float) -> int:
        """Do the next parts, as many as should fit into a time, at least one.

        Args:
            candidates: The running calls, by slot. A rebuild of any other is given up.
            secs: The time.

        Returns:
            How many rebuilds came to their end.
        """
        self._give_up_unless_wanted(candidates)
        done = 0
        began_secs = part_began_secs = time.perf_counter()
        while self._job is not None or self._begin(candidates):
            done += self._run_part()
            now_secs = time.perf_counter()
            # Another part of this length would come to its end too late.
            if 2 * now_secs - part_began_secs - began_secs > secs:
                break
            part_began_secs = now_secs
        return done

    def clear(self) -> None:
        """Give up what has begun."""
        self._job = None

    def _give_up_unless_wanted(self, candidates: Mapping[int, Candidate]) -> None:
        if self._job is None:
            return
        recollection = self._job.candidate.recollection
        candidate = candidates.get(self._job.slot)
        goes_on = candidate is not None and candidate.recollection is recollection
        if not (goes_on and recollection.is_kept):
            self._job = None

    def _begin(self, candidates: Mapping[int, Candidate]) -> bool:
        due = {
            slot: candidate
            for slot, candidate in candidates.items()
            if candidate.recollection.is_due(candidate.silent_steps)
        }
        if not due:
            return False
        slot = max(due, key=lambda each: due[each].recollection.filled)
        recollection = due[slot].recollection
        recollection.begin_rebuild()
        self._job = _Job(slot, due[slot], self._model.rebuild(slot, recollection.known))
        return True

    def _run_part(self) -> bool:
        """Do one part; return whether it was a rebuild's last."""
        assert self._job is not None
        slot, candidate, parts = self._job
        try:
            next(parts)
            return False
        except StopIteration:
            candidate.recollection.finish_rebuild()
            self._job = None
            logger.debug(f"Session {candidate.session_id} was rebuilt in slot {slot}")
            return True
        except Exception as error:
            candidate.recollection.failed = True
            self._job = None
            logger.opt(exception=error).error(
                f"Session {candidate.session_id} could not be rebuilt: it goes on, and forgets its "
                "oldest steps one by one"
            )
            return False
