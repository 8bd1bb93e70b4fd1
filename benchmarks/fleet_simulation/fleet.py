"""The simulated fleet: workers with slots, calls that come, go and move."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import simpy

SLOTS = 40
TRIES = 4
"""Samples of workers that a caller asks, one after another: the fleet's 32 tries of 8."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Parameters:
        workers: How many.
        load: Calls that there would be if none were refused, as a share of all slots.
        ask: Workers that a caller asks how full they are, by chance; 1 is chance alone, 0 is all.
        stale_secs: Age of the figures that they tell.
        call_secs: Median length of a call; lengths are log-normal, most are short and few are long.
        spread: Of the logarithm of the length.
        warm_secs: Time before anything is counted. The fleet begins with its calls in it.
        secs: Time that is counted.
        deaths_a_worker_day: Workers that die, for each worker and day.
        away_secs: How long a dead worker is away.
        upgrade: Whether every worker is replaced during the counted time.
        at_once: Workers that are replaced at the same time.
        start_secs: How long a new worker takes to start.
        seed: Makes it repeatable.
    """

    workers: int
    load: float = 0.75
    ask: int = 8
    stale_secs: float = 0.0
    call_secs: float = 120.0
    spread: float = 1.0
    warm_secs: float = 60.0
    secs: float = 600.0
    deaths_a_worker_day: float = 0.0
    away_secs: float = 120.0
    upgrade: bool = False
    at_once: int = 1
    start_secs: float = 60.0
    seed: int = 0

    @property
    def mean_call_secs(self) -> float:
        """Mean length of a call."""
        return self.call_secs * math.exp(self.spread**2 / 2)


@dataclass
class Counts:
    """What happened in the counted time.

    Parameters:
        calls: Calls that came.
        refused: Those that found no slot.
        tries: Workers that were called, over all calls.
        moves: Calls that went on elsewhere.
        lost: Calls that had to move and found no slot.
        drains_secs: How long each drain took: from the order to the last call's move.
        fullest: Used slots of the fullest worker beyond the mean, seen every ten seconds.
        moves_a_sec: Moves in each second that had any.
    """

    calls: int = 0
    refused: int = 0
    tries: int = 0
    moves: int = 0
    lost: int = 0
    drains_secs: list[float] = field(default_factory=list)
    fullest: list[float] = field(default_factory=list)
    moves_a_sec: Counter[int] = field(default_factory=Counter)


MOVE_SECS = 0.45
"""A worker reads the calls that move to it one after another. Measured: 0.40 to 0.52 s for 150
steps of the embedded model on two busy cores."""


class Fleet:
    """Workers with slots, in simulated time."""

    def __init__(self, plan: Plan):
        """Initialize with empty workers.

        Args:
            plan: What is simulated.
        """
        self._plan = plan
        self._env = simpy.Environment()
        self._chance = random.Random(plan.seed)
        count = plan.workers
        self._used = [0] * count
        self._takes = [True] * count
        self._told = np.zeros(count, int)
        self._told_at_secs = np.full(count, -math.inf)
        self._calls: list[dict[int, float]] = [{} for _ in range(count)]  # id: end
        self._where: dict[int, int] = {}
        self.counts = Counts()

    def run(self) -> Counts:
        """Simulate, and return what happened."""
        plan = self._plan
        self._fill()
        self._env.process(self._arrivals())
        self._env.process(self._watch())
        if plan.deaths_a_worker_day:
            self._env.process(self._deaths())
        if plan.upgrade:
            for first in range(plan.at_once):
                self._env.process(self._upgrade(range(first, plan.workers, plan.at_once)))
        self._env.run(until=plan.warm_secs + plan.secs)
        return self.counts

    @property
    def _counted(self) -> bool:
        return self._env.now >= self._plan.warm_secs

    #
    # calls
    #

    def _arrivals(self) -> Iterator[simpy.Event]:
        plan = self._plan
        rate = plan.load * plan.workers * SLOTS / plan.mean_call_secs
        number = 0
        while True:
            yield self._env.timeout(self._chance.expovariate(rate))
            number += 1
            secs = self._chance.lognormvariate(math.log(plan.call_secs), plan.spread)
            self.counts.calls += self._counted
            if self._place(number, self._env.now + secs):
                self._env.process(self._end(number, secs))
            else:
                self.counts.refused += self._counted

    def _fill(self) -> None:
        """Begin with the calls of a fleet that has run for long: long calls are met more often."""
        plan = self._plan
        middle = math.log(plan.call_secs) + plan.spread**2
        for number in range(1, round(plan.load * plan.workers * SLOTS) + 1):
            secs = self._chance.lognormvariate(middle, plan.spread) * self._chance.random()
            if self._place(-number, secs):
                self._env.process(self._end(-number, secs))

    def _end(self, number: int, secs: float) -> Iterator[simpy.Event]:
        yield self._env.timeout(secs)
        worker = self._where.pop(number, None)
        if worker is not None:
            del self._calls[worker][number]
            self._used[worker] -= 1

    def _place(self, number: int, end_secs: float) -> bool:
        for worker in self._ranked():
            self.counts.tries += self._counted
            if self._takes[worker] and self._used[worker] < SLOTS:
                self._used[worker] += 1
                self._calls[worker][number] = end_secs
                self._where[number] = worker
                return True
        return False

    def _ranked(self) -> Iterator[int]:
        """Yield workers in the order in which a caller tries them."""
        count, ask = self._plan.workers, self._plan.ask
        sizes = [count] if not ask else [min(ask, count)] * TRIES
        for size in sizes:
            sample = self._chance.sample(range(count), size)
            told = {worker: self._tell(worker) for worker in sample}
            least = min(told.values()) + 1
            # As RemoteFleet chooses: the emptier of two at random that are nearly the emptiest.
            even = [worker for worker in sample if told[worker] <= least]
            even[:2] = sorted(even[:2], key=told.__getitem__)
            yield from even
            yield from sorted((w for w in sample if told[w] > least), key=told.__getitem__)

    def _tell(self, worker: int) -> int:
        """Return a worker's used slots, as old as they may be."""
        if not self._takes[worker]:
            return SLOTS
        if self._env.now - self._told_at_secs[worker] >= self._plan.stale_secs:
            self._told[worker] = self._used[worker]
            self._told_at_secs[worker] = self._env.now
        return int(self._told[worker])

    #
    # workers that go and come
    #

    def _move_all(self, worker: int) -> None:
        calls, self._calls[worker] = self._calls[worker], {}
        self._used[worker] = 0
        for number, end_secs in calls.items():
            del self._where[number]
            self.counts.moves += self._counted
            self.counts.moves_a_sec[int(self._env.now)] += self._counted
            if not self._place(number, end_secs):
                self.counts.lost += self._counted

    def _deaths(self) -> Iterator[simpy.Event]:
        rate = self._plan.deaths_a_worker_day * self._plan.workers / 86_400
        while True:
            yield self._env.timeout(self._chance.expovariate(rate))
            worker = self._chance.randrange(self._plan.workers)
            if self._takes[worker]:
                self._env.process(self._away(worker, self._plan.away_secs))

    def _away(self, worker: int, secs: float) -> Iterator[simpy.Event]:
        self._takes[worker] = False
        self._move_all(worker)
        yield self._env.timeout(secs)
        self._takes[worker] = True

    def _upgrade(self, workers: range) -> Iterator[simpy.Event]:
        yield self._env.timeout(self._plan.warm_secs)
        for worker in workers:
            # The new one starts beside the old one, and takes calls in its place from then on.
            yield self._env.timeout(self._plan.start_secs)
            began_secs, calls = self._env.now, self._used[worker]
            self._move_all(worker)
            targets = max(1, min(calls, self._plan.workers - 1))
            yield self._env.timeout(MOVE_SECS * math.ceil(calls / targets) if calls else 0)
            self.counts.drains_secs.append(self._env.now - began_secs)

    def _watch(self) -> Iterator[simpy.Event]:
        yield self._env.timeout(self._plan.warm_secs)
        while True:
            takes = [used for used, open_ in zip(self._used, self._takes, strict=True) if open_]
            self.counts.fullest.append(max(takes) - sum(takes) / len(takes))
            yield self._env.timeout(10)
