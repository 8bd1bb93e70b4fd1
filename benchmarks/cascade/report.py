"""The tables, as the documentation holds them, and the picture."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.cascade.agents import TITLES
from benchmarks.cascade.contexts import faults, messages_of
from benchmarks.cascade.figures import YIELD_SECS, Figures, measure
from benchmarks.cascade.stage import Call
from benchmarks.cascade.tool_call import ToolFigures
from benchmarks.duplex.figures import Share, share
from benchmarks.duplex.overlap import Reaction, overlap_lines
from benchmarks.duplex.report import plain

MAX_LATE_SHARE = 0.01

_Row = tuple[str, Callable[[str, "Column"], str]]


@dataclass
class Column:
    """One agent's figures.

    Attributes:
        figures: Of all dialogues.
        contexts: What is wrong with each context; empty where it is right.
        hum_messages: Hums that became messages.
        sound_messages: Coughs and noises that became messages.
        chunks: Pieces of the user's audio.
        late_chunks: Those that were given more than 80 ms late.
        steps: Of the duplex model.
        late_steps: Those that took longer than a step.
        failures: Why dialogues ended early.
        overlaps: What it does when somebody speaks while it does.
    """

    figures: Figures
    contexts: list[list[str]] = field(default_factory=list)
    hum_messages: int = 0
    sound_messages: int = 0
    chunks: int = 0
    late_chunks: int = 0
    steps: int = 0
    late_steps: int = 0
    failures: list[str] = field(default_factory=list)
    overlaps: list[Reaction] = field(default_factory=list)

    @property
    def wrong_contexts(self) -> int:
        """Contexts that are not right."""
        return sum(bool(found) for found in self.contexts)


@dataclass
class Report:
    """All of a run.

    Attributes:
        dialogues: With each agent.
        at_once: At a time.
        seed: Of the dialogues and the sampling.
        columns: By the agent's kind.
        tools: Of the calls with a function, if there were any.
    """

    dialogues: int
    at_once: int
    seed: int
    columns: dict[str, Column] = field(default_factory=dict)
    tools: ToolFigures | None = None


def make_column(calls: Sequence[Call], *, checks_contexts: bool) -> Column:
    """Measure all dialogues with one agent.

    Args:
        calls: That are over.
        checks_contexts: Whether the contexts can be checked: its words are known by the time.
    """
    column = Column(measure(calls))
    for call in calls:
        note_pace(column, call)
        if checks_contexts:
            column.contexts.append(faults(call))
            column.hum_messages += messages_of(call, "backchannel")
            column.sound_messages += messages_of(call, "sound", "sound_over")
    return column


def note_pace(column: Column, call: Call) -> None:
    """Add how well a dialogue kept time."""
    column.chunks += call.chunks
    column.late_chunks += call.late_chunks
    column.steps += len(call.dialogue.compute_secs)
    column.late_steps += call.dialogue.late_steps
    if call.dialogue.failure:
        column.failures.append(call.dialogue.failure)


def markdown(report: Report) -> str:
    """Return the tables."""
    columns = report.columns
    lines = [
        f"{report.dialogues} dialogues with each, {report.at_once} at once, seed {report.seed}. "
        "Shares with the number of cases; delays as median, 90th percentile.",
        "",
        *_late_lines(report),
        *_table(columns, _ROWS),
        "",
    ]
    reactions = {TITLES[kind]: c.overlaps for kind, c in columns.items() if c.overlaps}
    if reactions:
        lines += [*overlap_lines(reactions), ""]
    if report.tools is not None:
        lines += [*_tool_lines(report.tools), ""]
    for kind, column in columns.items():
        wrong = [text for found in column.contexts for text in found]
        lines += [f"- {TITLES[kind]}: a context is wrong: {text}" for text in wrong]
        lines += [f"- {TITLES[kind]}: ended early: {text}" for text in column.failures]
    return "\n".join(lines).rstrip() + "\n"


def short_markdown(report: Report) -> str:
    """Return the few rows that the README holds."""
    return "\n".join(_table(report.columns, [row for row in _ROWS if row[0] in _SHORT])) + "\n"


def _table(columns: dict[str, Column], rows: Sequence[_Row]) -> list[str]:
    lines = [
        f"| | {' | '.join(TITLES[kind] for kind in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for label, cell in rows:
        cells = [cell(kind, column) for kind, column in columns.items()]
        if any(text != "–" for text in cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _late_lines(report: Report) -> list[str]:
    chunks = sum(column.chunks for column in report.columns.values())
    late = sum(column.late_chunks for column in report.columns.values())
    if late <= MAX_LATE_SHARE * chunks:
        return []
    return [
        f"**{late / chunks:.1%} of the users' audio came late: these figures are as much of the "
        "machine as of the agents. Take fewer at once.**",
        "",
    ]


def _share(value: Share) -> str:
    return f"{value.value:.2f} of {value.of}" if value.value is not None else "–"


def _ms(secs: Sequence[float | None]) -> str:
    known = [1000 * value for value in secs if value is not None and math.isfinite(value)]
    if not known:
        return "–"
    p50, p90 = np.percentile(known, [50, 90])
    return f"{p50:.0f}, {p90:.0f} ms"


def _part(name: str) -> Callable[[str, Column], str]:
    return lambda kind, column: _ms([getattr(delay, name) for delay in column.figures.delays])


def _stopped(sort: str) -> Callable[[str, Column], str]:
    return lambda kind, column: _share(share(column.figures.stopped_by.get(sort, [])))


def _started(sort: str) -> Callable[[str, Column], str]:
    return lambda kind, column: _share(share(column.figures.started_by.get(sort, [])))


def _yields(within_secs: float) -> Callable[[str, Column], str]:
    return lambda kind, column: _share(column.figures.yields(within_secs))


def _wrong(kind: str, column: Column) -> str:
    return f"{column.wrong_contexts} of {len(column.contexts)}" if column.contexts else "–"


def _late(kind: str, column: Column) -> str:
    share_of_chunks = f"{column.late_chunks / max(1, column.chunks):.1%}"
    if not column.steps:
        return f"{share_of_chunks}, –"
    return f"{share_of_chunks}, {column.late_steps / column.steps:.1%}"


_ROWS: tuple[_Row, ...] = (
    ("answers a question within 5 s", lambda kind, column: _share(share(column.figures.taken))),
    ("from the last word to the first sound", _part("whole")),
    ("– until the turn is taken to be over", _part("turn")),
    ("– until the LLM has the words", _part("words")),
    ("– until the LLM's first token", _part("llm")),
    ("– until the first sound", _part("speech")),
    ("speaks into a sentence", lambda kind, column: _share(share(column.figures.early))),
    (
        "speaks into a sentence with a pause of 0.4 to 1.2 s",
        lambda kind, column: _share(share(column.figures.pause_early)),
    ),
    (
        "asks the LLM before such a sentence is over",
        lambda kind, column: _share(share(column.figures.pause_asked)),
    ),
    ("yields to a question within 0.6 s", _yields(YIELD_SECS[0])),
    ("yields to a question within 1 s", _yields(YIELD_SECS[1])),
    ("delay of a yield", lambda kind, column: _ms(column.figures.yield_secs)),
    (
        "answers the question that it yielded to",
        lambda kind, column: _share(share(column.figures.answered_over)),
    ),
    ('stops at an "uh huh"', _stopped("backchannel")),
    ("stops at a cough", _stopped("cough")),
    ("stops at a noise", _stopped("noise")),
    ("speaks because of a cough", _started("cough")),
    ("speaks because of a noise", _started("noise")),
    ("contexts that are wrong", _wrong),
    (
        '"uh huh"s that became messages',
        lambda kind, column: str(column.hum_messages) if column.contexts else "–",
    ),
    (
        "coughs and noises that became messages",
        lambda kind, column: str(column.sound_messages) if column.contexts else "–",
    ),
    ("late: user's audio, model's steps", _late),
)


_SHORT = {
    "answers a question within 5 s",
    "from the last word to the first sound",
    "speaks into a sentence with a pause of 0.4 to 1.2 s",
    "asks the LLM before such a sentence is over",
    "yields to a question within 1 s",
    'stops at an "uh huh"',
    "stops at a cough",
    "stops at a noise",
}


def _tool_lines(tools: ToolFigures) -> list[str]:
    within = share(secs <= 0.8 for secs in tools.filler_secs)
    quick = share(secs <= YIELD_SECS[0] for secs in tools.yield_secs)
    return [
        f"| a function that takes 3 s | of {tools.calls} calls |",
        "| --- | --- |",
        f"| filler within 0.8 s of the turn's end | {_share(within)} |",
        f"| filler after the turn's end | {_ms(tools.filler_secs)} |",
        f"| filler after the user's last word | {_ms(tools.filler_word_secs)} |",
        f"| calls without a filler | {tools.without_filler} |",
        f"| yields to a barge-in within 0.6 s | {_share(quick)} |",
        f"| delay of a yield | {_ms(tools.yield_secs)} |",
        f"| lost, said twice, or wrong in the context | {len(tools.faults)} |",
        *(f"\n- {text}" for text in tools.faults),
    ]


def as_json(report: Report) -> str:
    """Return everything, for programs."""
    return json.dumps(plain(asdict(report)), indent=1) + "\n"


def calls_as_json(calls: Sequence[Call]) -> str:
    """Return what happened in each dialogue, without its sound."""
    found = []
    for call in calls:
        dialogue = call.dialogue
        data = {field: getattr(call, field) for field in ("messages", "transcripts", "said")}
        data |= {"voice": dialogue.voice, "words": dialogue.words}
        data |= {"moments": [asdict(m) for m in dialogue.moments]}
        found.append(data | {"notes": [asdict(note) for note in call.notes]})
    return json.dumps(plain(found), indent=1) + "\n"


def plot(report: Report, path: Path) -> None:
    """Draw the delays, and how often each agent speaks or stops where it should not.

    Args:
        report: The run.
        path: A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    delays, yields, mistakes = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    for kind, column in report.columns.items():
        found = column.figures
        _steps(delays, [d.whole for d in found.delays], len(found.taken), 5.0, TITLES[kind])
        _steps(yields, found.yield_secs, len(found.yield_secs), 3.0, TITLES[kind])
    delays.set_title("has answered after")
    yields.set_title("has yielded after")
    yields.axvline(YIELD_SECS[0], color="0.5", linestyle=":")
    for axes in (delays, yields):
        axes.set_xlabel("seconds")
        axes.set_ylim(0, 1.03)
    figure.legend(*delays.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    _bars(mistakes, report)
    figure.savefig(path, format="png", metadata={"Software": None})


def _steps(axes, secs: Sequence[float], of: int, most_secs: float, title: str) -> None:
    """Draw the share of cases that are over by each second."""
    known = sorted(value for value in secs if math.isfinite(value))
    at = [0.0, *known, most_secs]
    shares = [0.0, *(np.arange(1, len(known) + 1) / max(1, of)), len(known) / max(1, of)]
    axes.step(at, shares, where="post", label=title)
    axes.set_xlim(0, most_secs)


def _bars(axes, report: Report) -> None:
    names = (
        "speaks into a pause",
        'stops at "uh huh"',
        "stops at a cough",
        "stops at a noise",
        "speaks at a cough",
        "speaks at a noise",
    )
    height = 0.8 / max(1, len(report.columns))
    for index, (kind, column) in enumerate(report.columns.items()):
        found = column.figures
        cases = [
            found.pause_early,
            *(found.stopped_by.get(sort, []) for sort in ("backchannel", "cough", "noise")),
            *(found.started_by.get(sort, []) for sort in ("cough", "noise")),
        ]
        at = np.arange(len(names)) + index * height
        axes.barh(at, [share(item).value or 0 for item in cases], height, label=TITLES[kind])
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("should not happen: share of cases")
