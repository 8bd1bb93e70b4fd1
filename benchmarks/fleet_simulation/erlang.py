"""Erlang's formula: how often callers find everything taken."""


def erlang_b(slots: int, load: float) -> float:
    """Return the share of callers that are refused.

    Args:
        slots: Calls that fit.
        load: Calls that there would be if all fitted: arrivals a second times seconds of a call.
    """
    blocked = 1.0
    for number in range(1, slots + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


def slots_for(load: float, refused: float) -> int:
    """Return the fewest slots with which no more than a share of the callers is refused.

    Args:
        load: As above.
        refused: The share.
    """
    blocked, slots = 1.0, 0
    while blocked > refused:
        slots += 1
        blocked = load * blocked / (slots + load * blocked)
    return slots
