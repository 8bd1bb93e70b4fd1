"""A telephone line: the order of its incoming audio, and the playback of outgoing audio.

Pure logic: the time is an argument.

A jitter buffer in front of the model would delay the caller's every word, and with it each yield.
So the caller's audio goes to the model as soon as it is there, and the unevenness is made up where
it is heard: in front of each of the agent's utterances, by as much silence as the line has lately
been late, or as the last utterances were torn. An even line has none.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

ULAW_SILENCE = b"\xff"
LINE_RATE_HZ = 8_000

# Beyond this a hole in the audio is not filled: the stream was paused.
MAX_FILL_SECS = 1.0
# A missing chunk is waited for until this many later ones have come, once the line has been seen to
# change the order. Twilio's own connection keeps it, so at first nothing is waited for.
MAX_HELD_CHUNKS = 3

HISTORY_SECS = 10.0
# Chunks that come one on the heels of another waited for the same cause: only the first one counts.
# Neither do chunks that piled up while the pipeline started.
_HEELS_SECS = 0.005
# A longer delay is a stall; it does not count as the line's habit.
MAX_RESERVE_SECS = 0.1
# A shorter reserve is not worth its delay: such a small hole is hardly heard.
MIN_RESERVE_SECS = 0.02
# After a longer silence at the far end, a new utterance begins.
UTTERANCE_GAP_SECS = 0.2
_SHORTEST_GAP_SECS = 0.001


@dataclass(frozen=True)
class LineReport:
    """How a line was.

    Parameters:
        lost_secs: Audio of the caller that never came, filled with silence.
        late_secs: Audio that came after its place was filled, and was left out.
        lateness_p98_ms: 98 of 100 chunks of the last ten seconds came at most this much later than
            the earliest.
        gaps: Times the far end ran out of audio inside an utterance.
        gap_secs: For how long in all.
        reserve_ms: Silence sent ahead of the latest utterance.
    """

    lost_secs: float
    late_secs: float
    lateness_p98_ms: float
    gaps: int
    gap_secs: float
    reserve_ms: float


class InboundLine:
    """Puts the caller's chunks into the order of their timestamps, and silence where one is lost.

    A chunk that is missing is filled as soon as a later one has come. On a line that changes the
    order of chunks, that is when as many later ones have come as it has lately been late by.
    """

    def __init__(self) -> None:
        """Initialize the line before its first chunk."""
        self._next_ms: float | None = None
        self._held: dict[float, bytes] = {}
        self._wait_chunks = 0
        self._last_secs = -math.inf
        # Arrival, and arrival less timestamp.
        self._offsets_secs: deque[tuple[float, float]] = deque()
        self.lost_secs = 0.0
        self.late_secs = 0.0

    def push(self, timestamp_ms: float | None, payload: bytes, now_secs: float) -> bytes:
        """Take a chunk.

        Args:
            timestamp_ms: Its place in the stream; ``None`` is right behind the one before.
            payload: μ-law, 8 kHz.
            now_secs: The time, of a steady clock.

        Returns:
            The audio that continues the audio returned before: often none, or several chunks.
        """
        if not payload:
            return b""
        if timestamp_ms is None:
            timestamp_ms = self._next_ms or 0.0
        self._note_arrival(timestamp_ms / 1000, now_secs)
        if self._next_ms is None:
            self._next_ms = timestamp_ms
        chunk_ms = _secs(payload) * 1000
        ahead_ms = timestamp_ms - self._next_ms
        if abs(ahead_ms) > 1000 * MAX_FILL_SECS:
            self._held.clear()  # The stream was paused, or begins anew.
            return self._emit(timestamp_ms, payload)
        # Timestamps are whole milliseconds: less than half a chunk off is in its place.
        if ahead_ms < -chunk_ms / 2:
            self.late_secs += _secs(payload)
            overtaken_by = round(-ahead_ms / chunk_ms) - 1
            self._wait_chunks = min(MAX_HELD_CHUNKS, max(1, self._wait_chunks, overtaken_by))
            return b""
        if ahead_ms < chunk_ms / 2:
            return self._emit(timestamp_ms, payload) + self._emit_held()
        self._held[timestamp_ms] = payload
        if len(self._held) <= self._wait_chunks:
            return b""
        return self._fill() + self._emit_held()

    def lateness_secs(self, quantile: float = 0.98) -> float:
        """Return how much later than the earliest the chunks of the last ten seconds came.

        Args:
            quantile: Share of the chunks that came no later than that. Later than
                :data:`MAX_RESERVE_SECS` is a stall and does not count.
        """
        offsets = np.array([offset for _, offset in self._offsets_secs])
        if not len(offsets):
            return 0.0
        lateness = offsets - offsets.min()
        return float(np.quantile(lateness[lateness <= MAX_RESERVE_SECS], quantile))

    def _note_arrival(self, timestamp_secs: float, now_secs: float) -> None:
        last_secs, self._last_secs = self._last_secs, now_secs
        if now_secs - last_secs < _HEELS_SECS:
            return
        self._offsets_secs.append((now_secs, now_secs - timestamp_secs))
        while self._offsets_secs[0][0] < now_secs - HISTORY_SECS:
            self._offsets_secs.popleft()

    def _emit(self, timestamp_ms: float, payload: bytes) -> bytes:
        self._next_ms = timestamp_ms + _secs(payload) * 1000
        return payload

    def _emit_held(self) -> bytes:
        """Return the chunks that waited, as far as they follow each other."""
        out = b""
        for timestamp_ms in sorted(self._held):
            payload = self._held[timestamp_ms]
            assert self._next_ms is not None
            if timestamp_ms - self._next_ms >= _secs(payload) * 1000 / 2:
                break
            out += self._emit(timestamp_ms, self._held.pop(timestamp_ms))
        return out

    def _fill(self) -> bytes:
        """Replace the missing audio before the first waiting chunk by silence."""
        assert self._next_ms is not None
        missing_ms = min(self._held) - self._next_ms
        self._next_ms += missing_ms
        self.lost_secs += missing_ms / 1000
        return ULAW_SILENCE * round(missing_ms * LINE_RATE_HZ / 1000)


class OutboundLine:
    """Knows when the far end plays what it is sent, as long as nothing else is sent to it.

    The far end plays audio as it comes, one piece after the other, and stops at a clear.
    """

    def __init__(self) -> None:
        """Initialize the line with nothing sent."""
        self._played_until_secs = -math.inf
        # By how much the last utterances were torn; what one was spared, the next ones forget.
        self._shortage_secs = 0.0
        self._torn_secs = 0.0
        self.gaps = 0
        self.gap_secs = 0.0
        self.reserve_secs = 0.0

    def send(self, now_secs: float, secs: float, *, lateness_secs: float) -> float:
        """Note that audio is being sent.

        Args:
            now_secs: The time, of a steady clock.
            secs: Its length.
            lateness_secs: How uneven the line is.

        Returns:
            Length of the silence to send ahead of it; 0 inside an utterance.
        """
        dry_secs = now_secs - self._played_until_secs
        reserve_secs = 0.0
        if dry_secs > UTTERANCE_GAP_SECS:
            reserve_secs = self.reserve_secs = self._reserve_secs(lateness_secs)
        elif dry_secs > _SHORTEST_GAP_SECS:
            self.gaps += 1
            self.gap_secs += dry_secs
            self._torn_secs += dry_secs
        self._played_until_secs = max(now_secs, self._played_until_secs) + reserve_secs + secs
        return reserve_secs

    def clear(self) -> None:
        """Note that the far end threw away what it had not played."""
        self._played_until_secs = -math.inf

    def _reserve_secs(self, lateness_secs: float) -> float:
        """Return what a new utterance needs: as much as the line is late, or as the last lacked."""
        if self._torn_secs:
            self._shortage_secs += self._torn_secs
        else:
            self._shortage_secs /= 2
        self._torn_secs = 0.0
        self._shortage_secs = min(MAX_RESERVE_SECS, self._shortage_secs)
        needed_secs = max(lateness_secs, self._shortage_secs)
        return min(MAX_RESERVE_SECS, needed_secs) if needed_secs >= MIN_RESERVE_SECS else 0.0


def _secs(payload: bytes) -> float:
    return len(payload) / LINE_RATE_HZ
