"""Which of the frames that were sent a block of audio answers, where the server does not say."""

from collections import deque

from pipecat_duplex.session import STEP_SECS

WINDOW_STEPS = 50
"""Answers that must agree before the pairing is changed: four seconds."""

# A loss makes all later answers 80 ms older; jitter of the network alone does not.
_TOLERANCE = 0.25

# How much the pace of frames and answers may differ from real time for ages to mean anything.
_PACE = 0.15


class Pairing:
    """Pairs the blocks of a stream with the frames that were sent, oldest first.

    A server of Moshi's protocol answers every frame with one block of 80 ms, after the first
    ``lead_steps`` frames, which the acoustic delay leaves without sound: those are silent at once.
    Two things could shift that for good, and do not:

    - A block that no frame waits for is left out.
    - A block that was lost (the server dropped a frame, say) makes the youngest age at which a
      frame is answered rise by 80 ms for good. When the youngest of four seconds is that much older
      than it was before, the frames that got nothing are answered with silence, at once. This is
      only decided while frames and answers flow in real time; network delay that has grown by 80 ms
      and stays looks the same, and is treated the same.

    The time is an argument.
    """

    def __init__(self, lead_steps: int):
        """Initialize before the first frame.

        Args:
            lead_steps: Frames at the beginning that get no audio.
        """
        self._lead_steps = lead_steps
        self._sent = 0
        self._waiting: deque[tuple[int, float]] = deque()
        self._usual_age_secs: float | None = None
        self._clear_window()

    @property
    def waiting(self) -> int:
        """Frames without an answer."""
        return len(self._waiting)

    @property
    def oldest_sent_secs(self) -> float | None:
        """When the oldest frame without an answer was sent."""
        return self._waiting[0][1] if self._waiting else None

    def send(self, now_secs: float) -> tuple[int, bool]:
        """Note a frame.

        Args:
            now_secs: When it was sent.

        Returns:
            Its index, and whether it is answered with silence at once.
        """
        index = self._sent
        self._sent += 1
        if index < self._lead_steps:
            return index, True
        self._waiting.append((index, now_secs))
        return index, False

    def answer_oldest(self) -> tuple[int, float] | None:
        """Pair an answer of a server that leaves none out.

        Returns:
            The oldest frame without an answer, with the time at which it was sent.
        """
        return self._waiting.popleft() if self._waiting else None

    def answer(self, now_secs: float) -> tuple[list[tuple[int, float]], tuple[int, float] | None]:
        """Pair a block.

        Args:
            now_secs: When it came.

        Returns:
            Frames that got nothing, and the frame that the block answers, each with the time at
            which it was sent. ``None`` if no frame waits for the block.
        """
        if not self._waiting:
            return [], None
        lost = self._count_lost(now_secs)
        skipped = [self._waiting.popleft() for _ in range(lost)]
        return skipped, self._waiting.popleft()

    def _count_lost(self, now_secs: float) -> int:
        sent_secs = self._waiting[0][1]
        if self._window_steps == 0:
            self._window_sent_secs = sent_secs
            self._window_came_secs = now_secs
        self._window_steps += 1
        self._youngest_secs = min(self._youngest_secs, now_secs - sent_secs)
        if self._window_steps < WINDOW_STEPS:
            return 0
        youngest_secs = self._youngest_secs
        spans_secs = (sent_secs - self._window_sent_secs, now_secs - self._window_came_secs)
        self._clear_window()
        real_time_secs = (WINDOW_STEPS - 1) * STEP_SECS
        if any(abs(span_secs / real_time_secs - 1) > _PACE for span_secs in spans_secs):
            return 0
        if self._usual_age_secs is None or youngest_secs < self._usual_age_secs:
            self._usual_age_secs = youngest_secs
            return 0
        lost = int((youngest_secs - self._usual_age_secs) / STEP_SECS + _TOLERANCE)
        return min(lost, len(self._waiting) - 1)

    def _clear_window(self) -> None:
        self._window_steps = 0
        self._window_sent_secs = 0.0
        self._window_came_secs = 0.0
        self._youngest_secs = float("inf")
