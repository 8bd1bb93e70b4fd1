"""From blocks that come several at once to one answer for each frame that was sent."""

import re
from collections import deque
from typing import NamedTuple

import numpy as np

from pipecat_duplex.session import STEP_SAMPLES, WORD_START

CHUNK_STEPS = 5
"""Blocks that vLLM-Omni sends at once as it is shipped: ``codec_chunk_frames``."""

MAX_CHUNK_STEPS = 25
"""No server is believed to send more at once again and again: two seconds."""

LEARNED_FROM = 3
"""Chunks that tell how many blocks come at once, after the first one, which is shorter. Of these,
the shortest counts: a server that was held up for a moment sends more."""


class Answer(NamedTuple):
    """What a frame is answered with.

    Parameters:
        frame: Its index.
        sent_secs: When it was sent.
        pcm: Audio of one step.
        piece: The piece of a word that begins here, as SentencePiece writes it, or ``None``.
    """

    frame: int
    sent_secs: float
    pcm: np.ndarray
    piece: str | None


class ChunkPairing:
    """Answers every frame with one block, evenly, though the blocks come in chunks.

    A chunk of n blocks is n steps late in its first block and on time in its last. So all answers
    lie n steps behind, from the beginning on: the first n frames are answered with silence at once,
    and each later frame with a block that is there already, or is about to come. That is no more
    delay than the chunks make, and it never changes in mid-call.

    How long chunks are is assumed first, and seen within the first seconds. Where they are shorter,
    blocks are left out once; where they are longer, more silence goes before, once.

    The time is an argument.
    """

    def __init__(self) -> None:
        """Initialize before the first frame."""
        self._silent = CHUNK_STEPS
        self._skipped = 0
        self._chunk_steps = CHUNK_STEPS
        self._lengths: list[int] = []
        self._sent = 0
        self._waiting: deque[tuple[int, float]] = deque()
        self._ready: deque[tuple[np.ndarray, str | None]] = deque()
        self._pieces: deque[str] = deque()
        self._has_text = False

    @property
    def waiting(self) -> int:
        """Frames without an answer."""
        return len(self._waiting)

    def send(self, now_secs: float) -> tuple[int, list[Answer]]:
        """Note a frame.

        Args:
            now_secs: When it was sent.

        Returns:
            Its index, and the answers that there are now.
        """
        index = self._sent
        self._sent += 1
        self._waiting.append((index, now_secs))
        return index, self._answers()

    def take(self, blocks: list[np.ndarray], text: str, *, whole: bool = True) -> list[Answer]:
        """Take a chunk.

        Args:
            blocks: Audio, each of one step.
            text: What is said in it. Its words are spread over the blocks.
            whole: Whether the chunk ended with its last block. One that was cut anywhere does not
                tell how many come at once.

        Returns:
            The answers that there are now.
        """
        self._pieces.extend(self._split(text))
        if blocks and whole:
            self._learn(len(blocks))
        places = _spread(len(self._pieces), len(blocks))
        for place, block in enumerate(blocks):
            piece = self._pieces.popleft() if place in places and self._pieces else None
            self._ready.append((block, piece))
        self._leave_out()
        return self._answers()

    def _answers(self) -> list[Answer]:
        answers = []
        while self._waiting and (self._silent or self._ready):
            index, sent_secs = self._waiting.popleft()
            if self._silent:
                self._silent -= 1
                block, piece = np.zeros(STEP_SAMPLES, np.float32), None
            else:
                block, piece = self._ready.popleft()
            answers.append(Answer(index, sent_secs, block, piece))
        return answers

    def _learn(self, length: int) -> None:
        """See how many blocks come at once."""
        if len(self._lengths) > LEARNED_FROM:
            return
        self._lengths.append(length)
        if len(self._lengths) > LEARNED_FROM:
            seen = min(min(self._lengths[1:]), MAX_CHUNK_STEPS)
            self._silent += max(0, seen - self._chunk_steps)
            self._skipped += max(0, self._chunk_steps - seen)
            self._chunk_steps = seen

    def _leave_out(self) -> None:
        """Leave out the first blocks, or the oldest if the server makes more than it was sent."""
        most = 2 * max(CHUNK_STEPS, self._chunk_steps)
        while self._ready and (self._skipped or len(self._ready) - len(self._waiting) > most):
            self._skipped = max(0, self._skipped - 1)
            _, piece = self._ready.popleft()
            if piece is not None:
                self._put_back(piece)

    def _put_back(self, piece: str) -> None:
        """Keep the piece of a block that nobody hears for the next block without one."""
        for place, (block, other) in enumerate(self._ready):
            if other is None:
                self._ready[place] = (block, piece)
                return
            self._ready[place], piece = (block, piece), other
        self._pieces.appendleft(piece)

    def _split(self, text: str) -> list[str]:
        pieces = re.findall(r"\s*\S+|\s+$", text)
        if pieces and not self._has_text and not pieces[0][0].isspace():
            pieces[0] = " " + pieces[0]  # A decoder leaves out the first space of all.
        self._has_text = self._has_text or bool(pieces)
        return [re.sub(r"\s+", WORD_START, piece) for piece in pieces]


def _spread(count: int, places: int) -> set[int]:
    """Return where so many pieces go among so many blocks, evenly."""
    if count >= places:
        return set(range(places))
    return {number * places // count for number in range(count)}
