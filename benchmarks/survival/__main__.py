"""Let callers count on workers, and let the workers die: ``python -m benchmarks.survival``."""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from benchmarks.survival.caller import Caller, CallResult, Task
from benchmarks.survival.faults import FAULTS, disturb
from benchmarks.survival.report import HEADER, Figures, row, sum_up
from benchmarks.survival.workers import Worker

APART_SECS = 0.4
"""Callers come one after another: not all of them are at the same word."""


async def run(
    workers: Sequence[Worker],
    fault: str,
    *,
    callers: int,
    secs: float,
    every_secs: float,
    task: Task = "told",
) -> tuple[Figures, list[CallResult]]:
    """Hold calls while one kind of fault comes again and again.

    Args:
        workers: Running workers.
        fault: One of :data:`~benchmarks.survival.faults.FAULTS`.
        callers: Calls at a time.
        secs: How long the agents get something to say.
        every_secs: Time between two faults.
        task: What they say.
    """
    urls = [worker.url for worker in workers]
    for worker in workers:
        await worker.count_steps()
    before = [(worker.steps, worker.late_steps) for worker in workers]

    at_the_line = [Caller(urls, task) for _ in range(callers)]

    async def call(number: int) -> CallResult:
        await asyncio.sleep(number * APART_SECS)
        return await at_the_line[number].run(secs)

    async def do_harm() -> list[tuple[float, str]]:
        for caller in at_the_line:
            await caller.began.wait()
        return await disturb(workers, fault, every_secs=every_secs, secs=secs)

    async def count() -> None:
        while True:
            await asyncio.sleep(1.0)
            await asyncio.gather(*(worker.count_steps() for worker in workers))

    counting = asyncio.create_task(count())
    disturbing = asyncio.create_task(do_harm())
    results = await asyncio.gather(*map(call, range(callers)))
    if not all(caller.began.is_set() for caller in at_the_line):
        disturbing.cancel()
    faults = (await asyncio.gather(disturbing, return_exceptions=True))[0]
    if isinstance(faults, asyncio.CancelledError):
        faults = []
    elif isinstance(faults, BaseException):
        raise faults
    counting.cancel()
    steps = sum(w.steps - b[0] for w, b in zip(workers, before, strict=True))
    late = sum(w.late_steps - b[1] for w, b in zip(workers, before, strict=True))
    times = 0 if fault == "none" else len(faults)
    return sum_up(fault, times, results, late / max(1.0, steps)), list(results)


async def main(args: argparse.Namespace) -> None:
    """Run every fault, and print the table."""
    # Room for all calls on the others while one worker is away.
    slots = -(-args.callers // max(1, args.workers - 1)) + 1
    options = {"agent": args.agent, "has_line": "cut" in args.faults.split(",")}
    workers = [Worker(slots, args.drain_secs, **options) for _ in range(args.workers)]
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        print(f"{args.callers} callers, {args.workers} workers ({args.agent}) of {slots} slots,")
        print(f"task {args.task}, {args.secs:g} s a fault, one every {args.every_secs:g} s,")
        print(f"{os.cpu_count()} cores, load before it {os.getloadavg()[0]:.1f}\n\n{HEADER}")
        kept = []
        for fault in args.faults.split(","):
            options = {"callers": args.callers, "secs": args.secs, "every_secs": args.every_secs}
            figures, results = await run(workers, fault, task=args.task, **options)
            print(row(figures), flush=True)
            if figures.unanswered:
                print(f"  {figures.unanswered} requests were not answered", file=sys.stderr)
            for result in results:
                if result.lost:
                    print(f"  lost: {result.lost}", file=sys.stderr)
            kept.append(dataclasses.asdict(figures))
        print(f"\nload after it {os.getloadavg()[0]:.1f}")
        if args.json:
            args.json.write_text(json.dumps(kept, indent=1))
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--secs", type=float, default=60.0, help="of each kind of fault")
    parser.add_argument("--every-secs", type=float, default=10.0, help="between two faults")
    parser.add_argument("--faults", default="none,kill,term,stop,cut")
    parser.add_argument("--task", choices=["told", "count"], default="told")
    parser.add_argument("--agent", choices=["embedded", "scripted"], default="embedded")
    parser.add_argument("--drain-secs", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    unknown = set(args.faults.split(",")) - set(FAULTS)
    if unknown:
        parser.error(f"unknown faults: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return args


if __name__ == "__main__":
    arguments = parse()
    logger.remove()
    if arguments.verbose:
        logger.add(sys.stderr, level="DEBUG", filter="pipecat_duplex")
    asyncio.run(main(arguments))
