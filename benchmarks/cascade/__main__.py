"""The duplex service beside a cascade, in one run: ``python -m benchmarks.cascade``.

By the clock, with optional packages: see ``benchmarks/cascade/parts.py``. Definitions:
``docs/llm.md``.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from loguru import logger

from benchmarks.cascade import report as reports
from benchmarks.cascade.agents import CASCADE, GIVEN, OWN, TITLES, Agent, Shared, make_agent
from benchmarks.cascade.librarian import FIRST_SECS, TOKENS_PER_SEC, answer_to
from benchmarks.cascade.parts import MissingParts, check_parts, whisper_folder
from benchmarks.cascade.report import Report
from benchmarks.cascade.scenes import PATIENCE_SECS, QUIET_SECS, draw_scenes
from benchmarks.cascade.stage import Call, hold
from benchmarks.cascade.tool_call import (
    Caller,
    ToolLibrarian,
    draw_calls,
    make_tool_agent,
    measure_tools,
)
from benchmarks.duplex.overlap import draw_overlaps, reactions
from benchmarks.duplex.users import Plan, User
from harness.loopback_llm import serving_llm
from pipecat_duplex.commands.audio_file import write_wav
from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.voice import HIBARI
from pipecat_duplex.session import SAMPLE_RATE_HZ, DuplexError

KINDS = (CASCADE, GIVEN, OWN)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cascade", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", default="embedded", help="embedded, a folder, or a name")
    parser.add_argument("--dialogues", type=int, default=2, help="with each agent")
    parser.add_argument("--agents", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--at-once", type=int, default=2, help="dialogues at a time")
    parser.add_argument("--tools", type=int, default=2, help="rounds of three calls of a function")
    parser.add_argument("--overlap", type=int, default=0, help="dialogues of overlaps with each")
    parser.add_argument(
        "--without-kokoro", action="store_true", help="flite and espeak-ng only: quicker"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--speech", type=Path, help="folder that keeps the users' speech")
    parser.add_argument("--out", type=Path, help="folder for the tables, JSON and the picture")
    parser.add_argument("--sound", action="store_true", help="write each dialogue to OUT too")
    return parser.parse_args()


async def hold_all(
    plans: Sequence[Plan],
    make: Callable[[int], Agent],
    *,
    at_once: int,
    make_user: Callable[[Plan], User] = User,
    what: str = "",
) -> list[Call]:
    """Hold dialogues, some at a time.

    Agents load their parts while nobody speaks: that holds up the event loop for seconds.

    Args:
        plans: The users' parts.
        make: Makes an agent from a seed.
        at_once: Dialogues at a time.
        make_user: Makes a user from their part.
        what: Who talks, for the log.
    """
    calls: list[Call] = []
    for first in range(0, len(plans), at_once):
        some = plans[first : first + at_once]
        agents = [make(first + index) for index in range(len(some))]
        users = [make_user(plan) for plan in some]
        calls += await asyncio.gather(*map(hold, users, agents))
        secs = max(len(call.dialogue.user_pcm) for call in calls[first:]) / SAMPLE_RATE_HZ
        logger.info(f"{what}: {len(calls)} of {len(plans)}, {secs:.0f} s")
    return calls


async def run(args: argparse.Namespace) -> tuple[Report, dict[str, list[Call]]]:
    """Hold all dialogues with all agents, and measure them."""
    report = Report(args.dialogues, args.at_once, args.seed)
    held: dict[str, list[Call]] = {}
    kokoro = not args.without_kokoro
    scenes = list(draw_scenes(args.dialogues, args.seed, cache=args.speech, kokoro=kokoro))
    overlaps = list(
        draw_overlaps(
            args.overlap,
            args.seed,
            cache=args.speech,
            kokoro=kokoro,
            patience_secs=PATIENCE_SECS,
            quiet_secs=QUIET_SECS,
        )
    )
    calls = draw_calls(args.tools, args.seed, args.speech)
    pace = {"first_secs": FIRST_SECS, "token_secs": 1 / TOKENS_PER_SEC}
    engine = await Engine.load(
        args.checkpoint, slots=args.at_once, cpu_threads=args.threads, tts=HIBARI
    )
    try:
        with whisper_folder() as whisper:
            async with serving_llm(answer_to, **pace) as (_, url):
                shared = Shared(url, whisper, engine)
                for kind in args.agents:
                    held[kind] = await _talk(kind, scenes, shared, args)
                    column = reports.make_column(held[kind], checks_contexts=kind == GIVEN)
                    report.columns[kind] = column
                    for call in await _talk(kind, overlaps, shared, args):
                        reports.note_pace(column, call)
                        knows_words = kind != CASCADE
                        column.overlaps += reactions(call.dialogue, knows_words=knows_words)
            async with serving_llm(ToolLibrarian(), **pace) as (_, url):
                held["tool"] = await hold_all(
                    calls,
                    lambda seed: make_tool_agent(Shared(url, whisper, engine), args.seed + seed),
                    at_once=args.at_once,
                    make_user=Caller,
                    what="a function",
                )
    finally:
        await engine.close()
    report.tools = measure_tools(held["tool"]) if calls else None
    return report, held


async def _talk(
    kind: str, plans: Sequence[Plan], shared: Shared, args: argparse.Namespace
) -> list[Call]:
    return await hold_all(
        plans,
        lambda seed: make_agent(kind, shared, args.seed * 1000 + seed),
        at_once=args.at_once,
        what=TITLES[kind],
    )


def write(args: argparse.Namespace, report: Report, held: dict[str, list[Call]]) -> None:
    """Write what was asked for."""
    if not args.out:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cascade.md").write_text(reports.markdown(report))
    (args.out / "cascade.json").write_text(reports.as_json(report))
    reports.plot(report, args.out / "cascade.png")
    for kind, calls in held.items():
        (args.out / f"calls-{kind}.json").write_text(reports.calls_as_json(calls))
    if args.sound:
        for kind, calls in held.items():
            for index, call in enumerate(calls):
                both = [call.dialogue.user_pcm, call.dialogue.agent_pcm]
                write_wav(args.out / f"{kind}-{index:02}.wav", both)


def main() -> None:
    """Hold the dialogues, print the tables, write what was asked for."""
    args = options()
    logger.remove()
    logger.add(sys.stderr, level="INFO", filter="__main__", format="{message}")
    logger.add(sys.stderr, level="ERROR", filter=lambda record: record["name"] != "__main__")
    try:
        check_parts()
        report, held = asyncio.run(run(args))
    except (DuplexError, MissingParts) as error:
        sys.exit(str(error))
    print(reports.markdown(report))
    print(f"For the README:\n\n{reports.short_markdown(report)}")
    write(args, report, held)


if __name__ == "__main__":
    main()
