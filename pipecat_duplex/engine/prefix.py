"""What is known of a conversation before its first step, laid out as the language model reads it.

A *frame* is what belongs together in time: the monologue, the agent's codebooks and the user's. The
language model reads *columns*, in which the acoustic codebooks come one step later. Both
runtimes write columns into a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipecat_duplex.session import STEP_SAMPLES
from pipecat_duplex.session.history import History

DECODER_STEPS = 125
"""Steps that the decoder reads again, so that its sound goes on where it was."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Frames that a conversation begins with.

    Parameters:
        codes: Int, shape ``(17, frames)``: monologue, agent, user.
        from_start: Whether the model's beginning comes before them; else they are the last part of
            something longer.
        heard_frames: How many of the last frames were heard, so that the decoder goes on from them.
        audio: The user's last audio, float32, shape ``(n, STEP_SAMPLES)``: the encoder goes on from
            it.
    """

    codes: np.ndarray
    from_start: bool = True
    heard_frames: int = 0
    audio: np.ndarray = field(default_factory=lambda: np.zeros((0, STEP_SAMPLES), np.float32))

    @classmethod
    def make(cls, persona: np.ndarray | None, history: History | None) -> "Prefix | None":
        """Return what a conversation begins with; ``None`` if it begins with nothing.

        Args:
            persona: Frames of its persona.
            history: What was said of it elsewhere.
        """
        if history is None:
            return None if persona is None else cls(persona)
        # A persona is in the model's past, and forgotten with what was said first.
        codes, complete = history.codes, history.complete
        if complete and persona is not None:
            codes = np.concatenate([persona, codes], axis=1)
        return cls(codes, complete, min(history.steps, DECODER_STEPS), history.audio)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.codes.shape[1]

    @property
    def heard(self) -> np.ndarray:
        """The agent's codes that were heard, int, shape ``(8, heard_frames)``."""
        return self.codes[1:9, self.frames - self.heard_frames :]

    def columns(self, delays: Sequence[int], initial: Sequence[int]) -> np.ndarray:
        """Lay the frames out in columns.

        The last column is the one that the next token is sampled from. It lacks nothing: the user's
        codes of the last frame are part of it.

        Args:
            delays: Steps that each of the 17 streams lags behind the first.
            initial: What each stream holds before the beginning.

        Returns:
            Int64, shape ``(17, columns)``. From the start there is one column more than frames;
            else as many fewer as the longest delay.
        """
        lag = np.asarray(delays)[:, None]
        first = 0 if self.from_start else 1 + int(lag.max())
        frame = np.arange(first, self.frames + 1)[None, :] - lag - 1
        found = np.take_along_axis(self.codes, np.maximum(frame, 0), axis=1)
        return np.where(frame >= 0, found, np.asarray(initial)[:, None]).astype(np.int64)
