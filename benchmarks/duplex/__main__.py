"""How a checkpoint or a server converses: ``python -m benchmarks.duplex``.

Without ``--lockstep`` everything runs by the clock, through real pipelines: a machine that is too
slow for the model shows as late steps. Definitions: ``docs/embedded-model.md``.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from loguru import logger

from benchmarks.duplex.dialogue import Dialogue
from benchmarks.duplex.figures import Outcome, measure, summarise
from benchmarks.duplex.mimed import MimedBackend
from benchmarks.duplex.overlap import OVERLAP, draw_overlaps, reactions
from benchmarks.duplex.people import NoPeople, people_plans
from benchmarks.duplex.report import Report, as_json, markdown, plot_delays, plot_dialogue
from benchmarks.duplex.smart_turn import SmartTurn
from benchmarks.duplex.speech import SEEN, UNSEEN, voices
from benchmarks.duplex.stage import by_the_clock, in_lock_step
from benchmarks.duplex.surroundings import NoSounds, echo_plans, sound_plans
from benchmarks.duplex.users import TURNS, Plan, draw_plans
from benchmarks.duplex.voiced import Rush, VoicedBackend
from pipecat_duplex.commands.audio_file import write_wav
from pipecat_duplex.engine.engine import QUANTIZATIONS, Engine
from pipecat_duplex.session import SAMPLE_RATE_HZ, DuplexBackend, DuplexError

REPEATS = 3
"""How often the same answer is given to the recogniser at most."""


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.duplex", description=__doc__.splitlines()[0]
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--checkpoint", default="embedded", help="embedded, a folder, or a name on the hub"
    )
    target.add_argument("--url", help="a server instead, such as ws://host:8998/api/chat")
    parser.add_argument("--dialogues", type=int, default=12, help="for each group of voices")
    parser.add_argument("--turns", type=int, default=len(TURNS), help="of each dialogue")
    parser.add_argument("--voices", nargs="*", choices=[UNSEEN, SEEN], default=[UNSEEN, SEEN])
    parser.add_argument(
        "--without-kokoro", action="store_true", help="flite and espeak-ng only: quicker"
    )
    parser.add_argument(
        "--people", type=Path, metavar="FOLDER", help="recordings with a manifest.jsonl as users"
    )
    parser.add_argument(
        "--everybody", action="store_true", help="of these, speakers of the training too"
    )
    parser.add_argument(
        "--sounds",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="sounds that are no speech: those of a folder, or made ones",
    )
    parser.add_argument(
        "--echo", type=float, metavar="DB", help="the agent's voice comes back at this level: -12"
    )
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="somebody speaks while the agent does: the scenes of Full-Duplex-Bench v1.5",
    )
    parser.add_argument(
        "--smart-turn", action="store_true", help="ask Pipecat's smart-turn beside it"
    )
    parser.add_argument(
        "--voice",
        choices=["own", "tts", "engine"],
        default="own",
        help="another voice speaks for the model (lock step): tts, as one behind the service; "
        "engine, one in the engine",
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--at-once", type=int, default=4, help="dialogues at a time")
    parser.add_argument("--lockstep", action="store_true", help="not by the clock")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--runtime", choices=["onnx", "torch"], help="of the engine")
    parser.add_argument(
        "--quantize", choices=QUANTIZATIONS, help="weights in fewer bits, on torch (docs/gpu.md)"
    )
    parser.add_argument(
        "--world",
        choices=["auto", "embedded", "none"],
        default="auto",
        help="whether the embedded model's answers are owed; auto looks at the checkpoint",
    )
    parser.add_argument(
        "--recognise", type=int, default=300, metavar="WORDS", help="0 leaves word errors out"
    )
    parser.add_argument("--out", type=Path, help="folder for tables and pictures")
    parser.add_argument("--json", type=Path, help="write figures and outcomes to this file")
    parser.add_argument("--sound", action="store_true", help="write each dialogue to OUT too")
    parser.add_argument("--speech", type=Path, help="folder that keeps the users' speech")
    return parser.parse_args()


def knows_world(args: argparse.Namespace) -> bool:
    """Whether the agent owes the answers of the embedded model's world."""
    if args.voice != "own":
        return False
    if args.world != "auto":
        return args.world == "embedded"
    if args.url is not None:
        return False
    if args.checkpoint == "embedded":
        return True
    config = Path(args.checkpoint) / "config.json"
    if not config.is_file():
        return False
    name = json.loads(config.read_text()).get("model_id", {}).get("name", "")
    return str(name).startswith("embedded")


async def open_backend(args: argparse.Namespace) -> DuplexBackend:
    """Load the checkpoint, or name the server."""
    if args.url is not None:
        from pipecat_duplex.remote import RemoteBackend

        return RemoteBackend(args.url)
    return await Engine.load(
        args.checkpoint,
        slots=args.at_once,
        runtime=args.runtime,
        cpu_threads=args.threads,
        quantize=args.quantize,
        tts=Rush() if args.voice == "engine" else "own",
    )


def draw_all(args: argparse.Namespace) -> Iterator[Plan]:
    """Draw every dialogue that was asked for, group by group."""
    kokoro = not args.without_kokoro
    for group in args.voices:
        names = voices(group, kokoro=kokoro)
        yield from draw_plans(
            names, group, args.dialogues, args.seed, cache=args.speech, turns=args.turns
        )
    if args.people:
        yield from people_plans(
            args.people, args.dialogues, args.seed, everybody=args.everybody, cache=args.speech
        )
    if args.sounds is not None:
        folder = Path(args.sounds) if args.sounds else None
        yield from sound_plans(args.dialogues, args.seed, folder, args.speech)
    if args.echo is not None:
        names = voices(UNSEEN, kokoro=kokoro)
        yield from echo_plans(names, args.dialogues, args.seed, args.echo, args.speech)
    if args.overlap:
        yield from draw_overlaps(args.dialogues, args.seed, cache=args.speech, kokoro=kokoro)


async def hold_dialogues(args: argparse.Namespace) -> list[Dialogue]:
    """Hold all dialogues, with a line for each that is over."""
    plans = list(draw_all(args))
    # Servers of other makes do not all bear a seed.
    seeds = [None if args.url else args.seed * 1000 + index for index in range(len(plans))]
    lockstep = args.lockstep or args.voice != "own"
    hold = in_lock_step if lockstep else by_the_clock
    done = 0

    def tell(dialogue: Dialogue) -> None:
        nonlocal done
        done += 1
        secs = len(dialogue.user_pcm) / SAMPLE_RATE_HZ
        logger.info(f"{done} of {len(plans)}: {dialogue.group} {dialogue.voice}, {secs:.0f} s")

    backend = await open_backend(args)
    if args.voice == "tts":
        backend = MimedBackend(backend)
    elif args.voice == "engine":
        backend = VoicedBackend(backend)
    try:
        return await hold(backend, plans, at_once=args.at_once, seeds=seeds, on_done=tell)
    finally:
        await backend.close()


def _target(args: argparse.Namespace) -> str:
    bits = f", weights in {args.quantize}" if args.quantize else ""
    voice = "" if args.voice == "own" else f", spoken by a TTS ({args.voice})"
    return (args.url or args.checkpoint) + bits + voice


def make_report(args: argparse.Namespace, dialogues: list[Dialogue]) -> Report:
    """Measure all dialogues."""
    report = Report(
        target=_target(args),
        pace="in lock step" if args.lockstep or args.voice != "own" else "by the clock",
        at_once=args.at_once,
        seed=args.seed,
        knows_world=knows_world(args),
    )
    for index, dialogue in enumerate(dialogues):
        if dialogue.group == OVERLAP:
            report.overlaps += reactions(dialogue, knows_words=report.knows_world)
        else:
            report.outcomes += measure(dialogue, index, knows_world=report.knows_world)
        report.compute_secs += dialogue.compute_secs
        report.late_steps += dialogue.late_steps
        report.dropped_steps += dialogue.dropped_steps
        if dialogue.failure:
            report.failures.append(dialogue.failure)
    groups = dict.fromkeys(dialogue.group for dialogue in dialogues)
    for group in (name for name in groups if name != OVERLAP):
        report.groups[group] = summarise([o for o in report.outcomes if o.group == group])
    if args.smart_turn:
        smart_turn = SmartTurn()
        for group in report.groups:
            own = [dialogue for dialogue in dialogues if dialogue.group == group]
            report.smart_turn[group] = smart_turn.decide(own)
    return report


def recognise(args: argparse.Namespace, report: Report, dialogues: list[Dialogue]) -> None:
    """Add the word errors to the report."""
    from benchmarks.duplex.intelligibility import Spoken, intelligibility
    from training import world
    from training.recogniser import sentences, word_loop
    from training.revoice import speak_answer

    said = whole_answers(report.outcomes, set(world.answers()), args.recognise, args.seed)
    if not said:
        return
    codec = _codec(args)
    answers = []
    for outcome in said:
        timed, source = (speech.samples for speech in speak_answer(outcome.said))
        renditions = {"agent": _sound(dialogues[outcome.dialogue], outcome), "source": source}
        if codec is not None:
            renditions["codec"] = codec(timed)
        answers.append(Spoken(outcome.said, renditions))
    report.understood = {
        "grammar of its sentences": intelligibility(answers, sentences()),
        "its words in any order": intelligibility(answers, word_loop()),
    }


def whole_answers(outcomes: list[Outcome], known: set[str], words: int, seed: int) -> list[Outcome]:
    """Choose answers to recognise: complete ones, no text too often, until there are enough words.

    Args:
        outcomes: Of the whole run.
        known: What the agent can say.
        words: How many words are enough.
        seed: Of the choice.
    """
    # What was talked over may end like a whole answer, and is none: nothing is owed there.
    fitting = [outcome for outcome in outcomes if outcome.said in known and outcome.moment.owed]
    repeats: Counter[str] = Counter()
    chosen, total = [], 0
    for index in np.random.default_rng(seed).permutation(len(fitting)):
        outcome = fitting[index]
        if total >= words or repeats[outcome.said] >= REPEATS:
            continue
        repeats[outcome.said] += 1
        chosen.append(outcome)
        total += len(outcome.said.split())
    return chosen


def _sound(dialogue: Dialogue, outcome: Outcome) -> np.ndarray:
    assert outcome.started_secs is not None and outcome.stopped_secs is not None
    start, stop = outcome.started_secs - 0.05, outcome.stopped_secs + 0.05
    return dialogue.agent_pcm[round(start * SAMPLE_RATE_HZ) : round(stop * SAMPLE_RATE_HZ)]


def _codec(args: argparse.Namespace):
    """The checkpoint's codec, there and back: what the language model could sound like at best."""
    if args.url is not None:
        return None
    import torch

    from pipecat_duplex.engine.torch.checkpoint import load_checkpoint
    from training.sizes import STEP_SAMPLES

    mimi = load_checkpoint(args.checkpoint, "cpu").mimi

    @torch.no_grad()
    def there_and_back(pcm: np.ndarray) -> np.ndarray:
        # On a step's edge, after silence, as the agent's answers begin.
        whole = np.pad(pcm, (10 * STEP_SAMPLES, STEP_SAMPLES - len(pcm) % STEP_SAMPLES))
        return mimi.decode(mimi.encode(torch.from_numpy(whole)[None, None]))[0, 0].numpy()

    return there_and_back


def write(args: argparse.Namespace, report: Report, dialogues: list[Dialogue]) -> None:
    """Write what was asked for."""
    if args.json:
        args.json.write_text(as_json(report))
    if not args.out:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "duplex.md").write_text(markdown(report))
    (args.out / "duplex.json").write_text(as_json(report))
    plot_delays(report, args.out / "delays.png")
    first = [outcome for outcome in report.outcomes if outcome.dialogue == 0]
    plot_dialogue(dialogues[0], first, args.out / "dialogue.png")
    if args.sound:
        for index, dialogue in enumerate(dialogues):
            path = args.out / f"dialogue-{index:02}-{dialogue.group}.wav"
            write_wav(path, [dialogue.user_pcm, dialogue.agent_pcm])


def main() -> None:
    """Hold the dialogues, print the tables, write what was asked for."""
    args = options()
    logger.remove()
    logger.add(sys.stderr, level="INFO", filter="__main__", format="{message}")
    logger.add(sys.stderr, level="WARNING", filter=lambda record: record["name"] != "__main__")
    try:
        dialogues = asyncio.run(hold_dialogues(args))
    except (DuplexError, NoPeople, NoSounds) as error:
        sys.exit(str(error))
    report = make_report(args, dialogues)
    if args.recognise and report.knows_world:
        recognise(args, report, dialogues)
    print(markdown(report))
    write(args, report, dialogues)


if __name__ == "__main__":
    main()
