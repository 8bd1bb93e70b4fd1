"""The simulated fleet, against Erlang's formula and against itself."""

import pytest

pytest.importorskip("simpy")

from benchmarks.fleet_simulation.erlang import erlang_b, slots_for
from benchmarks.fleet_simulation.fleet import SLOTS, Fleet, Plan


def test_erlang_b_is_that_of_the_tables() -> None:
    # 10 lines, 5 Erlang: 1.84 %; 100 lines, 84.06 Erlang: 1 %.
    assert erlang_b(10, 5.0) == pytest.approx(0.0184, abs=0.0001)
    assert erlang_b(100, 84.06) == pytest.approx(0.01, abs=0.0001)
    assert slots_for(84.0, 0.01) == 100


def test_a_single_worker_refuses_as_erlang_says() -> None:
    plan = Plan(1, load=1.0, secs=40_000.0, warm_secs=0.0, call_secs=60.0)
    counts = Fleet(plan).run()
    assert counts.refused / counts.calls == pytest.approx(erlang_b(SLOTS, SLOTS), rel=0.15)


def test_asking_more_workers_keeps_them_evener() -> None:
    fullest = {ask: sum(Fleet(Plan(50, ask=ask, secs=60.0)).run().fullest) for ask in (1, 2, 8)}
    assert fullest[1] > fullest[2] > fullest[8]


def test_an_upgrade_with_room_loses_no_call() -> None:
    counts = Fleet(Plan(10, load=0.7, upgrade=True, secs=700.0)).run()
    assert len(counts.drains_secs) == 10
    assert counts.moves > 200 and counts.lost == 0


def test_a_seed_makes_it_repeatable() -> None:
    first, second = (Fleet(Plan(10, secs=60.0, seed=3)).run() for _ in range(2))
    assert first == second
