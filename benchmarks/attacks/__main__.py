"""Honest callers by the clock beside each attack: are their steps late because of it?

    python -m benchmarks.attacks [--callers 16] [--secs 20] [--only say role] [--json attacks.json]

One server in a process of its own, with room for the honest callers and four more. Each attack runs
in another process. Before and after every attack the same callers are measured without it, in the
same run: what counts is the share of late steps beside the share without. A step is late when its
answer is not there 160 ms after its end, as in ``pipecat-duplex bench``.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from loguru import logger
from rich.console import Console
from rich.table import Table

from benchmarks.attacks.attackers import ATTACKS
from benchmarks.callers import running
from pipecat_duplex.commands.bench.callers import CallLog, murmur, run_callers
from pipecat_duplex.remote import RemoteBackend

SPARE_SLOTS = 4
READY = r"wss?://\S*?:(?P<port>\d+)/api/chat"


@dataclass(frozen=True)
class Result:
    """How honest callers fared beside an attack.

    Parameters:
        attack: Its name.
        rounds: How often it was begun.
        steps: Steps of the honest callers beside it.
        late: Share of them that were late.
        late_without: The same without it, before and after.
        p50_ms: Median delay beside it.
        p50_ms_without: The same without it.
        errors: Honest calls that ended.
    """

    attack: str
    rounds: int
    steps: int
    late: float
    late_without: float
    p50_ms: float
    p50_ms_without: float
    errors: int


async def measure(url: str, callers: int, secs: float) -> CallLog:
    """Let honest callers talk."""
    backend = RemoteBackend(url)
    try:
        return await run_callers(backend, callers, secs=secs, speech=murmur(), warm_up_secs=2.0)
    finally:
        await backend.close()


async def measure_beside(attack: str, url: str, callers: int, secs: float) -> Result:
    """Measure honest callers without an attack, beside it, and without it again."""
    calm = await measure(url, callers, secs / 2)
    attackers = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.attacks.attackers",
        attack,
        url,
        str(secs + 2),
        stdout=subprocess.PIPE,
    )
    try:
        beside = await measure(url, callers, secs)
        output, _ = await asyncio.wait_for(attackers.communicate(), 30)
    finally:
        if attackers.returncode is None:
            attackers.kill()
            await attackers.wait()
    calm.add(await measure(url, callers, secs / 2))
    return Result(
        attack=attack,
        rounds=int(output or 0),
        steps=beside.steps,
        late=beside.late_share(),
        late_without=calm.late_share(),
        p50_ms=_median_ms(beside),
        p50_ms_without=_median_ms(calm),
        errors=len(beside.errors),
    )


def _median_ms(log: CallLog) -> float:
    return 1000 * float(np.median(log.delays_secs)) if log.delays_secs else float("nan")


def print_results(results: list[Result]) -> None:
    """Print a table, one row an attack."""
    table = Table(
        "attack", "rounds", "steps", "late", "without it", "p50 ms", "without it", "ended"
    )
    for each in results:
        table.add_row(
            each.attack,
            str(each.rounds),
            str(each.steps),
            f"{100 * each.late:.2f} %",
            f"{100 * each.late_without:.2f} %",
            f"{each.p50_ms:.0f}",
            f"{each.p50_ms_without:.0f}",
            str(each.errors),
        )
    Console().print(table)


def main() -> None:
    """Run the attacks one after another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--callers", type=int, default=16, help="honest callers")
    parser.add_argument("--secs", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    logger.remove()
    serve = ["-m", "pipecat_duplex.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    serve += ["--slots", str(options.callers + SPARE_SLOTS)]
    results: list[Result] = []
    with running(*serve, ready=READY) as (_, match):
        url = f"ws://127.0.0.1:{re.match(READY, match[0])['port']}"  # pyright: ignore
        for attack in options.only:
            results.append(asyncio.run(measure_beside(attack, url, options.callers, options.secs)))
            print(f"{attack}: done", file=sys.stderr)
    print_results(results)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
