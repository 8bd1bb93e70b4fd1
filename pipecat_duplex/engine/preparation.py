"""What is written into a slot before its conversation's first step: a persona, and a history.

Slots that are prepared at the same time are finished one after another, so that the first can go
on while the last is still read: the one that could be done first comes first. Their parts and the
steps of the conversations beside them take turns: a part is a few milliseconds long.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import numpy as np
from loguru import logger

from pipecat_duplex.engine.long_calls import Limits
from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.persona import Casting, Persona
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.session import DuplexError, SessionConfig, one_line
from pipecat_duplex.session.history import History

PARTS_SECS = 0.008
"""How long neighbours that have a frame may wait for the parts of others."""


FRAME_SECS = 0.001
"""About what a frame takes to be read. It decides who comes first among slots that are prepared."""


@dataclass(eq=False)
class Preparation:
    """What is to be done in a session's slot before its first step.

    Parameters:
        session_id: The session, for logs.
        config: What its conversation asks of the model.
        persona: What the conversation begins with, if anything.
        history: What was said elsewhere, if anything was.
        done: Resolved on the session's asyncio loop.
        error: Why it could not be done.
        finished: Set by the engine's thread.
        frames: Those of the persona, once they are made.
        sounds: The user's codes in the audio of the history, for the recogniser.
    """

    session_id: str
    config: SessionConfig
    persona: Persona | None
    history: History | None
    done: asyncio.Future[None]
    error: Exception | None = None
    finished: bool = False
    frames: np.ndarray | None = None
    sounds: np.ndarray | None = None

    def count_frames(self) -> int:
        """Return how much there is to read."""
        persona = 0 if self.persona is None else self.persona.frames
        return persona + (0 if self.history is None else self.history.steps)


@dataclass(eq=False)
class _Job:
    preparation: Preparation
    parts: Generator[None, None, None]
    due_secs: float  # about when it would be done if it were alone


class Preparations:
    """All slots that are being prepared. Belongs to the engine's thread."""

    def __init__(self, model: StepModel, limits: Limits | None = None):
        """Initialize with nothing to do.

        Args:
            model: Whose slots are prepared.
            limits: What calls that are rebuilt begin with; ``None`` if they are not.
        """
        self._model = model
        self._limits = limits
        self._casting = Casting()
        self._jobs: dict[int, _Job] = {}

    def run(
        self, wanted: Mapping[int, Preparation], is_alone: Callable[[], bool]
    ) -> list[Preparation]:
        """Do the next parts, within :data:`PARTS_SECS` if parts are as short as they should be.

        Args:
            wanted: What is to be done, by slot, whose conversation has joined. What is no longer
                wanted is dropped.
            is_alone: Whether no conversation waits for its next step meanwhile.

        Returns:
            What is finished, well or not.
        """
        self._follow(wanted, is_alone)
        finished: list[Preparation] = []
        began_secs = part_began_secs = time.perf_counter()
        while self._jobs:
            slot = min(self._jobs, key=lambda each: self._jobs[each].due_secs)
            job = self._jobs[slot]
            if not self._run_part(job):
                del self._jobs[slot]
                finished.append(job.preparation)
            now_secs = time.perf_counter()
            # Another part of this length would come to its end too late.
            if 2 * now_secs - part_began_secs - began_secs > PARTS_SECS:
                break
            part_began_secs = now_secs
        return finished

    def clear(self) -> None:
        """Drop everything."""
        self._jobs.clear()

    def _follow(self, wanted: Mapping[int, Preparation], is_alone: Callable[[], bool]) -> None:
        self._jobs = {
            slot: job for slot, job in self._jobs.items() if wanted.get(slot) is job.preparation
        }
        now_secs = time.monotonic()
        for slot, preparation in wanted.items():
            if slot not in self._jobs:
                parts = self._write(slot, preparation, is_alone)
                due_secs = now_secs + FRAME_SECS * preparation.count_frames()
                self._jobs[slot] = _Job(preparation, parts, due_secs)

    def _run_part(self, job: _Job) -> bool:
        """Do one part; return whether there is more to do."""
        preparation = job.preparation
        try:
            next(job.parts)
            return True
        except StopIteration:
            pass
        except DuplexError as error:
            preparation.error = error
        except Exception as error:
            logger.opt(exception=error).error(
                f"Session {preparation.session_id} could not be prepared"
            )
            reason = f"the slot cannot be prepared: {type(error).__name__}: {one_line(error)}"
            preparation.error = DuplexError(reason)
        preparation.finished = True
        return False

    def _write(
        self, slot: int, preparation: Preparation, is_alone: Callable[[], bool]
    ) -> Generator[None, None, None]:
        """Begin a slot's conversation and write what comes before its first step, in parts."""
        self._model.join(slot, preparation.config)
        history = preparation.history
        # What does not reach back to the beginning has a persona behind it that was forgotten,
        # unless calls are rebuilt.
        is_remembered = history is None or history.complete or self._limits is not None
        if preparation.persona is not None and is_remembered:
            preparation.frames = yield from self._casting.frames(
                preparation.persona, self._model.encode_parts
            )
        if self._limits is not None and history is not None:
            preparation.history = self._limits.shorten(preparation.frames, history)
        prefix = Prefix.make(preparation.frames, preparation.history)
        if prefix is not None:
            preparation.sounds = yield from self._model.prefill(slot, prefix, is_alone)
