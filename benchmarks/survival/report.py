"""The table of a survival run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.survival.caller import CallResult
from benchmarks.survival.words import WordCount


@dataclass(frozen=True)
class Figures:
    """What one kind of fault did.

    Parameters:
        fault: Which.
        faults: How often.
        calls: Calls that were held.
        moves: Moves to another worker.
        lost: Calls that were lost.
        words: Words, over all calls.
        too_late: Words that were left out because they came too late, and marked so.
        unanswered: Requests without an answer.
        contexts_wrong: Calls whose context differs from what was heard.
        silences_secs: Silences of moves in the middle of an answer.
        late: Share of the steps that workers answered after 80 ms.
    """

    fault: str
    faults: int
    calls: int
    moves: int
    lost: int
    words: WordCount
    too_late: int
    unanswered: int
    contexts_wrong: int
    silences_secs: list[float]
    late: float


def sum_up(fault: str, faults: int, results: Sequence[CallResult], late: float) -> Figures:
    """Add calls up.

    Args:
        fault: What was done.
        faults: How often.
        results: What became of each call.
        late: Share of late steps.
    """
    return Figures(
        fault=fault,
        faults=faults,
        calls=len(results),
        moves=sum(result.moves for result in results),
        lost=sum(result.lost is not None for result in results),
        words=sum((result.words for result in results), WordCount()),
        too_late=sum(result.too_late for result in results),
        unanswered=sum(result.unanswered for result in results),
        contexts_wrong=sum(not result.context_is_right for result in results),
        silences_secs=[secs for result in results for secs in result.silences_secs],
        late=late,
    )


HEADER = (
    "| fault | times | calls | moves | calls lost | words | lost | doubled | too late "
    "| contexts wrong | silence p50 / p99 / most, s | late steps |\n|" + " --- |" * 12
)


def row(figures: Figures) -> str:
    """Return a line of the table."""
    words = figures.words
    silence = "–"
    if figures.silences_secs:
        p50, p99, most = np.percentile(figures.silences_secs, [50, 99, 100])
        silence = f"{p50:.2f} / {p99:.2f} / {most:.2f} ({len(figures.silences_secs)})"
    return (
        f"| {figures.fault} | {figures.faults} | {figures.calls} | {figures.moves} "
        f"| {figures.lost} | {words.expected} | {words.lost} | {words.doubled} "
        f"| {figures.too_late} | {figures.contexts_wrong} | {silence} "
        f"| {100 * figures.late:.1f} % |"
    )
