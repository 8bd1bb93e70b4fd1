"""The figures as tables, and two pictures."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.duplex.dialogue import Dialogue
from benchmarks.duplex.figures import (
    YIELD_SECS,
    Figures,
    Outcome,
    Share,
    share,
    utterances,
)
from benchmarks.duplex.intelligibility import Intelligibility
from benchmarks.duplex.overlap import Reaction, overlap_lines
from benchmarks.duplex.smart_turn import Decisions
from benchmarks.duplex.speech import SEEN, UNSEEN
from pipecat_duplex.commands.converse.recording import Recording

MAX_LATE_SHARE = 0.01
MAX_LISTED = 40


@dataclass
class Report:
    """All of a run.

    Attributes:
        target: Checkpoint or server.
        pace: ``by the clock`` or ``in lock step``.
        at_once: Dialogues at a time.
        seed: Of the dialogues and the sampling.
        knows_world: Whether answers can be judged.
        groups: Figures of each group of voices.
        outcomes: Of every moment.
        compute_secs: Of every step.
        late_steps: Steps answered more than a step after they were spoken.
        dropped_steps: Steps left out to catch up.
        understood: Word errors, by grammar.
        failures: Why dialogues ended early.
        smart_turn: What Pipecat's smart-turn decides beside it, by group.
        overlaps: What the agent does when somebody speaks while it does.
    """

    target: str
    pace: str
    at_once: int
    seed: int
    knows_world: bool
    groups: dict[str, Figures] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    compute_secs: list[float] = field(default_factory=list)
    late_steps: int = 0
    dropped_steps: int = 0
    understood: dict[str, Intelligibility] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    smart_turn: dict[str, Decisions] = field(default_factory=dict)
    overlaps: list[Reaction] = field(default_factory=list)

    @property
    def late_share(self) -> float:
        """Share of the steps that were late."""
        return self.late_steps / max(1, len(self.compute_secs))


def markdown(report: Report) -> str:
    """Return the tables."""
    lines = [
        f"# How `{report.target}` converses",
        "",
        f"{report.pace.capitalize()}, {report.at_once} at once, seed {report.seed}. "
        "Shares with Wilson's 95 % interval and the number of cases.",
        "",
    ]
    if report.pace == "by the clock" and report.late_share > MAX_LATE_SHARE:
        lines += [
            f"**{report.late_share:.1%} of the steps were late: these figures are as much of the "
            "machine as of the model. Take fewer at once.**",
            "",
        ]
    if report.groups:
        lines += _group_lines(report)
    if report.overlaps:
        lines += [*overlap_lines({report.target: report.overlaps}), ""]
    lines += [*_step_lines(report), ""]
    if report.groups:
        lines += _answer_lines(report)
    lines += [f"- a dialogue ended early: {reason}" for reason in report.failures]
    return "\n".join(lines) + "\n"


def _group_lines(report: Report) -> list[str]:
    names = list(report.groups)
    groups = list(report.groups.values())
    lines = [f"| | wanted | {' | '.join(map(_title, names))} |"]
    lines += [f"| --- | --- |{' --- |' * len(names)}"]
    for label, wanted, cell in _ROWS:
        cells = [cell(item) for item in groups]
        if any(text not in ("–", "0, 0, 0") for text in cells):
            lines.append(f"| {label} | {wanted} | {' | '.join(cells)} |")
    for label, wanted, attribute in _WORLD_ROWS:
        cells = [
            _share(getattr(item, attribute)) if report.knows_world else "not its world"
            for item in groups
        ]
        lines.append(f"| {label} | {wanted} | {' | '.join(cells)} |")
    return [*lines, *_smart_turn_lines(report), ""]


def _answer_lines(report: Report) -> list[str]:
    names = list(report.groups)
    groups = list(report.groups.values())
    lines = [*_word_lines(report), ""]
    if report.knows_world:
        lines += _by_lines("kind of question", names, [g.right_by_kind for g in groups])
        lines += _by_lines("voice", names, [g.right_by_voice for g in groups])
        lines += _wrong_lines(report.outcomes)
    return lines


def _title(group: str) -> str:
    return f"{group} voices" if group in (UNSEEN, SEEN) else group


def _share(value: Share) -> str:
    interval = value.interval()
    if value.value is None or interval is None:
        return "–"
    return f"{value.value:.2f} ({interval[0]:.2f} to {interval[1]:.2f}) of {value.of}"


def _delays(delays_secs: list[float]) -> str:
    finite = [1000 * delay for delay in delays_secs if math.isfinite(delay)]
    if not finite:
        return "–"
    return f"{np.median(finite):.0f} ms, {np.percentile(finite, 90):.0f} ms"


def _yield_shape(delays_secs: list[float]) -> str:
    late = sum(YIELD_SECS < delay <= 1.0 for delay in delays_secs)
    later = sum(1.0 < delay < math.inf for delay in delays_secs)
    return f"{late}, {later}, {sum(map(math.isinf, delays_secs))}"


_ROWS = (
    ("takeover after a complete turn", "≥ 0.95", lambda f: _share(f.takeover)),
    ("its delay, median and 90th percentile", "≤ 400 ms", lambda f: _delays(f.delays_secs)),
    ("starts inside the user's sentence", "", lambda f: _share(f.early)),
    ("takeover in a pause of 0.4 to 1.2 s", "≤ 0.10", lambda f: _share(f.pause_takeover)),
    ("any sound in such a pause", "", lambda f: _share(f.pause_sound)),
    ("yields to a barge-in within 600 ms", "≥ 0.95", lambda f: _share(f.yields)),
    ("delay of a yield, median and 90th percentile", "", lambda f: _delays(f.yield_secs)),
    ("yields after 0.6 to 1 s, later, never", "", lambda f: _yield_shape(f.yield_secs)),
    ("takeover after a barge-in", "", lambda f: _share(f.answers_after)),
    ("goes on through a backchannel", "≥ 0.80", lambda f: _share(f.goes_on)),
    ("takes the turn at a sound that is no speech", "≤ 0.10", lambda f: _share(f.starts_at_sounds)),
    ("goes on through such a sound", "≥ 0.85", lambda f: _share(f.goes_on_through_sounds)),
    ("tells a long answer to its end", "≥ 0.95", lambda f: _share(f.whole)),
    ("speaks first after about two seconds", "", lambda f: _share(f.opening)),
)
_WORLD_ROWS = (
    ("right answer, by its monologue", "≥ 0.90 seen, 0.75 unseen", "right"),
    ("right answer to a barge-in", "", "right_after"),
)


def _smart_turn_lines(report: Report) -> list[str]:
    """Its decisions in the same dialogues, beside the rows that they compare with."""
    if not report.smart_turn:
        return []
    rows = (
        ('smart-turn: "complete" after the sentence', lambda d: d.complete_after),
        ('smart-turn: "complete" in the pause', lambda d: d.complete_in_pause),
    )
    found = [report.smart_turn[name] for name in report.groups]
    return [
        f"| {label} | | {' | '.join(_share(share(attribute(item))) for item in found)} |"
        for label, attribute in rows
    ]


def _step_lines(report: Report) -> list[str]:
    compute_ms = 1000 * np.array(report.compute_secs or [0.0])
    p50, p99 = np.percentile(compute_ms, [50, 99])
    line = f"Step of {report.at_once} at once: median {p50:.1f} ms, 99th percentile {p99:.1f} ms"
    line += f", {len(report.compute_secs)} steps."
    if report.pace == "by the clock":
        line += f" Late: {report.late_steps} ({report.late_share:.2%}), left out: "
        line += f"{report.dropped_steps}."
    return [line]


def _word_lines(report: Report) -> list[str]:
    if not report.knows_world:
        return ["Word errors: not measured, the recogniser's grammar is of another world."]
    if not report.understood:
        return ["Word errors: not measured."]
    names = list(next(iter(report.understood.values())).rates)
    lines = [f"| word errors a word | words | {' | '.join(names)} | agent to source |"]
    lines += [f"| --- | --- |{' --- |' * len(names)} --- |"]
    for grammar, item in report.understood.items():
        ratio = "–"
        if item.ratio is not None and item.interval is not None:
            ratio = f"{item.ratio:.2f} ({item.interval[0]:.2f} to {item.interval[1]:.2f})"
        rates = " | ".join(f"{item.rates[name]:.3f}" for name in names)
        lines.append(f"| {grammar} | {item.words} | {rates} | {ratio} |")
    return lines


def _by_lines(what: str, names: list[str], shares: list[dict[str, Share]]) -> list[str]:
    keys = sorted(set().union(*shares))
    lines = [f"| right, by {what} | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for key in keys:
        cells = [_fraction(item.get(key)) for item in shares]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return [*lines, ""]


def _fraction(value: Share | None) -> str:
    return f"{value.hits} of {value.of}" if value else "–"


def _wrong_lines(outcomes: Sequence[Outcome]) -> list[str]:
    wrong = [outcome for outcome in outcomes if outcome.right is False]
    lines = ["| not the right answer | voice | asked | said |", "| --- | --- | --- | --- |"]
    for outcome in sorted(wrong, key=lambda o: (o.group, o.moment.text_kind))[:MAX_LISTED]:
        moment = outcome.moment
        said = outcome.said or "(nothing)"
        lines.append(f"| {moment.kind} | {outcome.voice} | {moment.text} | {said} |")
    if len(wrong) > MAX_LISTED:
        lines.append(f"| … | | {len(wrong) - MAX_LISTED} more | |")
    return [*lines, ""] if wrong else []


def as_json(report: Report) -> str:
    """Return everything, for programs: figures with their intervals, and every outcome."""
    data = asdict(report)
    data.pop("compute_secs")
    if report.compute_secs:
        compute_ms = 1000 * np.array(report.compute_secs)
        data["step_ms"] = {
            "p50": float(np.percentile(compute_ms, 50)),
            "p99": float(np.percentile(compute_ms, 99)),
            "steps": len(compute_ms),
        }
    for name, figures in report.groups.items():
        for key, value in vars(figures).items():
            if isinstance(value, Share):
                data["groups"][name][key] |= {"value": value.value, "interval": value.interval()}
    return json.dumps(plain(data), indent=1) + "\n"


def plain(value):
    """A yield that never came is told as "never", and numbers of numpy as plain ones."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else "never"
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def plot_delays(report: Report, path: Path) -> None:
    """Draw how soon the agent takes the turn, and how soon it yields.

    Args:
        report: The run.
        path: A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=150)
    FigureCanvasAgg(figure)
    panels = (
        ("takes the turn after", "delays_secs", 3.0, 0.4),
        ("yields to a barge-in after", "yield_secs", 2.0, YIELD_SECS),
    )
    for axes, (title, attribute, most, wanted) in zip(figure.subplots(1, 2), panels, strict=True):
        bins = np.linspace(0, most, 31)
        values = [np.array(getattr(item, attribute)) for item in report.groups.values()]
        # What comes later, or never, stands in the last bar.
        clipped = [np.clip(item, 0, most - 1e-6) for item in values]
        axes.hist(clipped, bins, label=[f"{name} voices" for name in report.groups])
        axes.axvline(wanted, color="0.5", linestyle=":", label=f"{1000 * wanted:.0f} ms")
        axes.set_xlabel("seconds (the last bar: later or never)")
        axes.set_ylabel("times")
        axes.set_title(title)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="png", metadata={"Software": None})


def plot_dialogue(dialogue: Dialogue, outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw one dialogue, by the benchmark's definitions.

    Args:
        dialogue: A conversation that is over.
        outcomes: Its moments.
        path: A PNG file.
    """
    from pipecat_duplex.commands.converse.plot import plot_conversation

    recording = Recording(dialogue.user_pcm)
    recording.agent_pcm = dialogue.agent_pcm
    for moment in dialogue.moments:
        if moment.text:
            recording.add("user_started", moment.start_secs)
            recording.add("user_stopped", moment.end_secs)
    for item in utterances(dialogue.agent_pcm):
        recording.add("agent_started", item.start_secs)
        recording.add("agent_stopped", item.end_secs)
    for at_secs, word in dialogue.words:
        recording.add("word", at_secs, text=word)
    for outcome in outcomes:
        start_secs, end_secs = outcome.moment.start_secs, outcome.moment.end_secs
        if outcome.yield_secs is not None and math.isfinite(outcome.yield_secs):
            at_secs = start_secs + outcome.yield_secs
            recording.add("yield", at_secs, delay_secs=outcome.yield_secs)
        if outcome.goes_on:
            recording.add("backchannel", start_secs, duration_secs=end_secs - start_secs)
    plot_conversation(recording, path)
