"""A picture of a conversation: both voices on one time axis, and who holds the floor."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipecat_duplex.commands.converse.recording import Recording, answers, floor_spans
from pipecat_duplex.session import SAMPLE_RATE_HZ, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PX, HEIGHT_PX = 3200, 1400
_DPI = 200

_USER = "#2f6fb5"
_AGENT = "#e0663c"
_BOTH = "#8a4f9e"
_INK = "#26303a"
_FAINT = "#8b96a1"
_LINE = "#dde2e7"

# Heights, bottom to top.
_WORD_ROWS = 3
_WORD_ROW = 0.26
_AGENT_MID, _USER_MID = 1.0, 3.4
_WAVE = 0.78
_FLOOR_BOTTOM, _FLOOR_TOP = 2.0, 2.2
_EVENT_ROW = 2.3
_LEAST_SHARE = 0.7
_TICKS_SECS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_MOST_TICKS = 16
_BOTTOM, _TOP = -0.78, 4.34


def require_matplotlib() -> None:
    """Check that a picture can be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "drawing a picture needs matplotlib, which is not installed: "
            "pip install 'pipecat-duplex[plot]'"
        ) from error


def plot_conversation(recording: Recording, path: Path) -> None:
    """Draw a conversation.

    Args:
        recording: The conversation.
        path: The PNG file, 3200 by 1400 pixels.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=(WIDTH_PX / _DPI, HEIGHT_PX / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.062, 0.085, 0.922, 0.80))
        _set_up(axes, recording)
        _draw_title(figure)
        _draw_floor(axes, recording)
        _draw_voices(axes, recording)
        _draw_answers(axes, recording)
        _draw_overlaps(axes, recording)
        _draw_words(axes, recording)
        figure.savefig(path, format="png", metadata={"Software": None})


def _set_up(axes: "Axes", recording: Recording) -> None:
    axes.set_xlim(0, recording.secs)
    axes.set_ylim(_BOTTOM, _TOP)
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(axis="x", color=_LINE, labelcolor=_FAINT, length=4)
    tick_secs = next((t for t in _TICKS_SECS if recording.secs / t <= _MOST_TICKS), 600)
    axes.set_xticks(np.arange(0, recording.secs, tick_secs))
    axes.xaxis.set_major_formatter(lambda secs, _: _clock(secs, recording.secs))
    axes.grid(axis="x", color=_LINE, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    for name, color, height in (("user", _USER, _USER_MID), ("agent", _AGENT, _AGENT_MID)):
        axes.text(
            -0.012,
            height,
            name,
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            color=color,
            fontsize=15,
            fontweight="bold",
        )
    axes.text(
        -0.012,
        (_FLOOR_BOTTOM + _FLOOR_TOP) / 2,
        "floor",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        color=_FAINT,
        fontsize=11,
    )


def _draw_title(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    figure.text(
        0.062,
        0.945,
        "Both voices at once, one model in between",
        color=_INK,
        fontsize=16,
        fontweight="bold",
        va="center",
    )
    handles = [
        Patch(color=_USER, label="user speaks"),
        Patch(color=_AGENT, label="agent speaks"),
        Patch(color=_BOTH, label="both speak"),
    ]
    figure.legend(
        handles=handles,
        loc="center right",
        bbox_to_anchor=(0.99, 0.945),
        ncols=3,
        frameon=False,
        labelcolor=_INK,
        handlelength=1.1,
        handleheight=0.8,
        columnspacing=1.4,
        fontsize=11,
    )


def _draw_floor(axes: "Axes", recording: Recording) -> None:
    """Shade who speaks behind each voice, and sum it up in the strip between them."""
    events = recording.events
    user = floor_spans(events, "user", recording.secs)
    agent = floor_spans(events, "agent", recording.secs)
    for spans, color, middle in ((user, _USER, _USER_MID), (agent, _AGENT, _AGENT_MID)):
        low, high = middle - _WAVE - 0.06, middle + _WAVE + 0.06
        _bars(axes, spans, low, high, color, alpha=0.10)
    _bars(axes, [(0.0, recording.secs)], _FLOOR_BOTTOM, _FLOOR_TOP, "#eef1f4")
    _bars(axes, user, _FLOOR_BOTTOM, _FLOOR_TOP, _USER)
    _bars(axes, agent, _FLOOR_BOTTOM, _FLOOR_TOP, _AGENT)
    both = list(_intersections(user, agent))
    _bars(axes, both, _FLOOR_BOTTOM, _FLOOR_TOP, _BOTH)
    _bars(axes, both, _AGENT_MID - _WAVE - 0.06, _USER_MID + _WAVE + 0.06, _BOTH, alpha=0.07)


def _draw_voices(axes: "Axes", recording: Recording) -> None:
    for pcm, color, middle in (
        (recording.user_pcm, _USER, _USER_MID),
        (recording.agent_pcm, _AGENT, _AGENT_MID),
    ):
        secs, low, high = _envelope(pcm)
        # Each voice fills its band, and what is silent stays silent.
        scale = _WAVE / max(0.05, float(np.abs(pcm).max(initial=0.0)))
        axes.fill_between(
            secs,
            middle + low * scale - 0.008,
            middle + high * scale + 0.008,
            color=color,
            linewidth=0,
            zorder=3,
        )


def _draw_answers(axes: "Axes", recording: Recording) -> None:
    """Mark how long the agent took from the user's end to its first sound."""
    texts = []
    for user_end_secs, sound_secs in answers(recording):
        axes.plot(
            [user_end_secs, sound_secs],
            [_FLOOR_TOP + 0.05] * 2,
            color=_INK,
            linewidth=1.6,
            solid_capstyle="butt",
            zorder=6,
        )
        text = axes.text(
            (user_end_secs + sound_secs) / 2,
            _EVENT_ROW,
            f"answers after {sound_secs - user_end_secs:.2f} s",
            ha="center",
            va="bottom",
            fontsize=10.5,
            color=_INK,
            zorder=6,
        )
        _keep_inside(axes, text)
        texts.append(text)
    _thin_out(axes, texts, rows=1)


def _draw_overlaps(axes: "Axes", recording: Recording) -> None:
    """Mark each time the user spoke over the agent: a yield, or a backchannel."""
    taken: list[tuple[float, float]] = []
    for event in recording.select("yield"):
        axes.plot(
            [event.time_secs] * 2,
            [_AGENT_MID - _WAVE, _TOP - 0.06],
            color=_BOTH,
            linewidth=1.6,
            linestyle=(0, (4, 2)),
            zorder=5,
        )
        delay_secs = event.fields["delay_secs"]
        _note(axes, taken, event.time_secs, f"yields after {delay_secs:.2f} s", bold=True)
    for event in recording.select("backchannel"):
        middle_secs = event.time_secs + event.fields["duration_secs"] / 2
        _note(axes, taken, middle_secs, "backchannel: goes on")


def _note(
    axes: "Axes",
    taken: list[tuple[float, float]],
    secs: float,
    words: str,
    *,
    bold: bool = False,
) -> None:
    """Write above the user's voice, inside the picture, unless something stands there."""
    text = axes.text(
        secs,
        _TOP - 0.02,
        words,
        ha="center",
        va="bottom",
        fontsize=11.5,
        color=_BOTH,
        fontweight="bold" if bold else "normal",
        zorder=6,
    )
    _keep_inside(axes, text)
    span = _text_span(axes, text)
    if any(True for _ in _intersections([span], taken)):
        text.remove()
    else:
        taken.append(span)


def _draw_words(axes: "Axes", recording: Recording) -> None:
    """Write each word under the moment in which it begins."""
    top = _AGENT_MID - _WAVE - 0.22
    texts = [
        axes.text(
            event.time_secs,
            top,
            event.fields["text"],
            ha="left",
            va="center",
            fontsize=12,
            color=_INK,
            parse_math=False,
            zorder=5,
            # Leaders of the rows below pass behind the word.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
        for event in recording.select("word")
    ]
    for text, row in _thin_out(axes, texts, rows=_WORD_ROWS):
        secs, height = text.get_position()[0], top - row * _WORD_ROW
        text.set_y(height)
        axes.plot(
            [secs, secs],
            [height, _AGENT_MID - _WAVE - 0.02],
            color=_AGENT,
            linewidth=0.9,
            alpha=0.6,
            zorder=2,
        )


def _thin_out(axes: "Axes", texts: list[Any], *, rows: int) -> list[tuple[Any, int]]:
    """Share texts out over rows so that none stands on another.

    What finds no place is taken away. Where that would be much, all are: every third word of a
    sentence says nothing.

    Args:
        axes: The picture.
        texts: Sorted by time.
        rows: Rows to share them out over.

    Returns:
        The texts that stay, and the row of each, counted from 0.
    """
    low, high = axes.get_xlim()
    gap_secs = 0.004 * (high - low)
    free_from_secs = [low - 1.0] * rows
    kept = []
    for text in texts:
        start_secs, end_secs = _text_span(axes, text)
        row = next((r for r, free in enumerate(free_from_secs) if start_secs >= free), None)
        if row is None or end_secs > high + gap_secs:
            continue
        free_from_secs[row] = end_secs + gap_secs
        kept.append((text, row))
    if len(kept) < _LEAST_SHARE * len(texts):
        kept = []
    staying = {id(text) for text, _ in kept}
    for text in texts:
        if id(text) not in staying:
            text.remove()
    return kept


def _keep_inside(axes: "Axes", text: Any) -> None:
    start_secs, end_secs = _text_span(axes, text)
    low, high = axes.get_xlim()
    text.set_x(text.get_position()[0] + max(0.0, low - start_secs) - max(0.0, end_secs - high))


def _text_span(axes: "Axes", text: Any) -> tuple[float, float]:
    """Return where a text begins and ends on the time axis."""
    box = text.get_window_extent().transformed(axes.transData.inverted())
    return box.x0, box.x1


def _bars(
    axes: "Axes",
    spans: Iterable[tuple[float, float]],
    low: float,
    high: float,
    color: str,
    alpha: float = 1.0,
) -> None:
    axes.broken_barh(
        [(start, stop - start) for start, stop in spans],
        (low, high - low),
        facecolors=color,
        alpha=alpha,
        linewidth=0,
        zorder=1,
    )


def _envelope(pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lowest and highest sample of each column of the picture, and its time."""
    block = max(1, len(pcm) // 2400)
    columns = len(pcm) // block
    blocks = pcm[: columns * block].reshape(columns, block)
    secs = (np.arange(columns) + 0.5) * block / SAMPLE_RATE_HZ
    return secs, blocks.min(axis=1), blocks.max(axis=1)


def _intersections(
    ours: Iterable[tuple[float, float]], theirs: list[tuple[float, float]]
) -> Iterable[tuple[float, float]]:
    for our_start, our_stop in ours:
        for start, stop in theirs:
            if max(start, our_start) < min(stop, our_stop):
                yield max(start, our_start), min(stop, our_stop)


def _clock(secs: float, total_secs: float) -> str:
    if total_secs < 90:
        return f"{secs:g} s"
    return f"{int(secs) // 60}:{int(secs) % 60:02d}"
