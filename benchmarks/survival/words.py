"""What was said twice, and what was never said."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WordCount:
    """How the words of an agent differ from those that it had to say.

    Parameters:
        expected: Words that it had to say.
        lost: Those that it did not.
        doubled: Words that it said again.
        others: Words that nobody asked for.
    """

    expected: int = 0
    lost: int = 0
    doubled: int = 0
    others: int = 0

    def __add__(self, other: "WordCount") -> "WordCount":
        """Return both together."""
        return WordCount(
            self.expected + other.expected,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.others + other.others,
        )


def compare(expected: Sequence[str], said: Sequence[str]) -> WordCount:
    """Compare words, in their order, by the fewest that are lost or further.

    Args:
        expected: What was to be said.
        said: What was said. A further word counts as doubled if it is among the two words before
            it or behind it, and else as another.
    """
    rows, columns = len(expected), len(said)
    cost = np.zeros((rows + 1, columns + 1), np.int64)
    cost[:, 0], cost[0, :] = np.arange(rows + 1), np.arange(columns + 1)
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            same = expected[row - 1] == said[column - 1]
            aside = 1 + min(cost[row - 1, column], cost[row, column - 1])
            cost[row, column] = min(aside, cost[row - 1, column - 1]) if same else aside
    lost = doubled = others = 0
    row, column = rows, columns
    while row or column:
        same = row and column and expected[row - 1] == said[column - 1]
        if same and cost[row, column] == cost[row - 1, column - 1]:
            row, column = row - 1, column - 1
        elif column and cost[row, column] == cost[row, column - 1] + 1:
            column -= 1
            near = [*said[max(0, column - 2) : column], *said[column + 1 : column + 3]]
            again = said[column] in near
            doubled += again
            others += not again
        else:
            row -= 1
            lost += 1
    return WordCount(rows, lost, doubled, others)
