"""Parts of work that are as long as they may be."""

from pipecat_duplex.engine.pace import Pace


def work(pace: Pace, secs_a_part: float, secs_a_step: float, parts: int) -> list[int]:
    lengths = []
    for _ in range(parts):
        lengths.append(pace.steps)
        pace.note(pace.steps, secs_a_part + pace.steps * secs_a_step)
    return lengths


def test_parts_grow_while_they_are_quick_and_shrink_when_they_are_slow():
    pace = Pace(8, 64, 0.008)
    assert work(pace, 0.0, 0.00005, 5) == [8, 16, 32, 64, 64]
    assert work(pace, 0.0, 0.0004, 4) == [64, 32, 16, 16]


def test_where_a_part_costs_as_much_as_its_steps_it_does_not_become_ever_shorter():
    pace = Pace(8, 64, 0.008)
    assert set(work(pace, 0.02, 0.0001, 10)) == {8}


def test_a_rest_that_is_shorter_tells_nothing_of_longer_parts():
    pace = Pace(8, 64, 0.008)
    work(pace, 0.0, 0.0004, 4)
    before = pace.steps
    pace.note(1, 0.0001)
    assert pace.steps == before
