"""Calls of ten windows: ``python -m benchmarks.long_calls``.

The same users for each way with long calls, in lock step. They listen and choose their moments, so
that what they say is the same and when they say it is not.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from loguru import logger

from benchmarks.duplex.dialogue import Dialogue
from benchmarks.duplex.figures import Figures, Outcome, Share, measure, summarise
from benchmarks.duplex.speech import SEEN, UNSEEN, voices
from benchmarks.duplex.stage import in_lock_step
from benchmarks.duplex.users import TURNS, Plan, draw_plans
from benchmarks.long_calls.persona import Left, converse, persona_left
from benchmarks.long_calls.ways import WAYS, Way, load_engine
from pipecat_duplex.engine.long_calls import LATEST_SHARE, REBUILT_SHARE, SILENT_SHARE
from pipecat_duplex.session import STEP_SECS, DuplexError

ROUNDS_PER_WINDOW = 0.8
"""Of the twelve kinds of turns: more than fit."""


@dataclass
class Run:
    """What came of one way.

    Attributes:
        way: The way.
        windows: Figures by window of the call.
        rebuilds: How many there were.
        secs: How long it took.
        failures: Dialogues that ended early.
    """

    way: Way
    windows: list[Figures]
    rebuilds: int
    secs: float
    failures: list[str]

    def shares(self, name: str, first: int = 0, end: int | None = None) -> Share:
        """Return a share over some windows together."""
        found: list[Share] = [getattr(figures, name) for figures in self.windows[first:end]]
        return Share(sum(each.hits for each in found), sum(each.of for each in found))


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_calls", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", default="embedded", help="with graphs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--dialogues", type=int, default=9, help="for each group of voices")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kokoro", action="store_true", help="Kokoro's voices too: slow to make")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--speech", type=Path, help="folder that keeps the users' speech")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def draw(args: argparse.Namespace, call_secs: float) -> list[Plan]:
    """Draw the users' parts: enough turns for the whole call."""
    kinds = TURNS * math.ceil(args.windows * ROUNDS_PER_WINDOW)
    plans: list[Plan] = []
    for group in (UNSEEN, SEEN):
        names = voices(group, kokoro=args.kokoro)
        drawn = draw_plans(names, group, args.dialogues, args.seed, cache=args.speech, kinds=kinds)
        plans += [replace(plan, max_secs=call_secs) for plan in drawn]
    return plans


async def hold(
    way: Way, plans: Sequence[Plan], args: argparse.Namespace, window_secs: float
) -> tuple[Run, np.ndarray]:
    """Hold all dialogues in one way.

    Returns:
        The figures, and what the first user said, float32, 24 kHz.
    """
    engine = await load_engine(way, args.checkpoint, len(plans), args.threads)
    seeds = [args.seed * 1000 + index for index in range(len(plans))]
    began_secs = time.perf_counter()
    try:
        dialogues = await in_lock_step(engine, plans, at_once=len(plans), seeds=seeds)
        rebuilds = engine.stats().rebuilds
    finally:
        await engine.close()
    secs = time.perf_counter() - began_secs
    failures = [dialogue.failure for dialogue in dialogues if dialogue.failure]
    windows = by_window(dialogues, args.windows, window_secs)
    logger.info(f"{way}: {len(plans)} dialogues in {secs:.0f} s, {rebuilds} rebuilds")
    return Run(way, windows, rebuilds, secs, failures), dialogues[0].user_pcm


def by_window(dialogues: Sequence[Dialogue], windows: int, window_secs: float) -> list[Figures]:
    """Return the figures of each window; a moment belongs to that in which its words end."""
    outcomes: list[list[Outcome]] = [[] for _ in range(windows)]
    for index, dialogue in enumerate(dialogues):
        for outcome in measure(dialogue, index, knows_world=True):
            window = int(outcome.moment.end_secs // window_secs)
            if window < windows:
                outcomes[window].append(outcome)
    return [summarise(each) for each in outcomes]


FIGURES = {
    "takeover": "takeover",
    "right": "right answers",
    "yields": "yields",
    "right_after": "right after a barge-in",
    "goes_on": "goes on through a backchannel",
    "pause_takeover": "takeover in a pause",
}


def markdown(runs: Sequence[Run], left: Sequence[Left], window_secs: float) -> str:
    """Return the tables."""
    lines = ["| | windows | " + " | ".join(FIGURES.values()) + " |", "| --- " * 8 + "|"]
    last = len(runs[0].windows)
    parts = [("1", 0, 1), (f"2 to {last}", 1, last)]
    if last > 6:
        parts.append((f"{last - 4} to {last}", last - 5, last))
    for run in runs:
        for name, first, end in parts:
            cells = [_cell(run.shares(figure, first, end)) for figure in FIGURES]
            lines.append(f"| {run.way} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "By window (one is " + f"{window_secs:.0f} s):", ""]
    numbers = [str(number + 1) for number in range(last)]
    lines += ["| | | " + " | ".join(numbers) + " |", "| --- " * (2 + last) + "|"]
    for name in ("takeover", "right", "yields", "right_after"):
        for run in runs:
            values = [_short(run.shares(name, number, number + 1)) for number in range(last)]
            lines.append(f"| {FIGURES[name]} | {run.way} | " + " | ".join(values) + " |")
    if left:
        moments = sorted({each.steps for each in left})
        lines += ["", "How far two personas are told apart after so many windows:", ""]
        heads = [f"{steps * STEP_SECS / window_secs:.2g}" for steps in moments]
        lines += ["| | " + " | ".join(heads) + " |", "| --- " * (1 + len(moments)) + "|"]
        for way in dict.fromkeys(each.way for each in left):
            own = {each.steps: each.difference for each in left if each.way == way}
            lines.append(f"| {way} | " + " | ".join(f"{own[at]:.3f}" for at in moments) + " |")
    return "\n".join(lines)


def _cell(share: Share) -> str:
    interval = share.interval()
    if share.value is None or interval is None:
        return "–"
    return f"{share.value:.3f} ({interval[0]:.3f} to {interval[1]:.3f}) of {share.of}"


def _short(share: Share) -> str:
    return "–" if share.value is None else f"{share.value:.2f}"


def as_json(args: argparse.Namespace, runs: Sequence[Run], left: Sequence[Left]) -> str:
    """Return all figures."""
    return json.dumps(
        {
            "checkpoint": args.checkpoint,
            "seed": args.seed,
            "dialogues": 2 * args.dialogues,
            "shares": {"silent": SILENT_SHARE, "latest": LATEST_SHARE, "rebuilt": REBUILT_SHARE},
            "runs": {
                run.way: {
                    "secs": run.secs,
                    "rebuilds": run.rebuilds,
                    "failures": run.failures,
                    "windows": [
                        {
                            name: [getattr(figures, name).hits, getattr(figures, name).of]
                            for name in FIGURES
                        }
                        for figures in run.windows
                    ],
                }
                for run in runs
            },
            "persona": [each._asdict() for each in left],
        },
        indent=1,
    )


async def run(args: argparse.Namespace) -> tuple[list[Run], list[Left], float]:
    """Hold everything."""
    probe = await load_engine("ring", args.checkpoint, 1, 1)
    context = probe.summary.context_steps
    await probe.close()
    window_secs = context * STEP_SECS
    plans = draw(args, args.windows * window_secs)
    runs: list[Run] = []
    user_pcm = np.zeros(0, np.float32)
    for way in args.ways:
        held, user_pcm = await hold(way, plans, args, window_secs)
        runs.append(held)
        if args.json:
            args.json.write_text(as_json(args, runs, []))  # one way may take minutes
    codes = converse(args.checkpoint, user_pcm)
    shares = (0.25, 0.75, 1.0, 1.25, 1.5, 2, 3, 5, 9)
    moments = [round(share * context) for share in shares if share * context <= codes.shape[1]]
    return runs, persona_left(args.checkpoint, codes, moments), window_secs


def main() -> None:
    """Hold the dialogues, print the tables, write what was asked for."""
    args = options()
    logger.remove()
    logger.add(sys.stderr, level="INFO", filter="__main__", format="{message}")
    logger.add(sys.stderr, level="WARNING", filter=lambda record: record["name"] != "__main__")
    try:
        runs, left, window_secs = asyncio.run(run(args))
    except DuplexError as error:
        sys.exit(str(error))
    print(markdown(runs, left, window_secs))
    for each in runs:
        for failure in each.failures:
            print(f"{each.way}: a dialogue ended early: {failure}")
    if args.json:
        args.json.write_text(as_json(args, runs, left))


if __name__ == "__main__":
    main()
