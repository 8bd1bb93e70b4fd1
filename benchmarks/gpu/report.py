"""The figures as JSON, as a table beside the prediction, and as a plot."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.prediction import CARDS, STEP_MS, Card, Prediction, predict

MODES: tuple[tuple[str, str | None, float], ...] = (
    ("bfloat16", None, 1.0),
    ("bfloat16, fp8 memory", None, 0.5),
    ("int8", "int8", 1.0),
    ("int8, fp8 memory", "int8", 0.5),
    ("int4", "int4", 1.0),
)
"""Ways to keep a model: name, weights, and memory of a session beside the model's own format."""


def predictions(sizes: dict[str, int], card: Card) -> dict[str, Prediction]:
    """Predict every way to keep a model on a card.

    Args:
        sizes: ``lm_parameters``, ``mimi_parameters`` and ``kv_bytes`` (in two bytes a number).
        card: The card.
    """
    return {
        name: predict(card, **sizes, quantization=weights, memory_factor=factor)
        for name, weights, factor in MODES
    }


def sizing_table(sizes: dict[str, int]) -> str:
    """Return the table of ``docs/gpu.md``: a card a row, a way to keep the model a column.

    Args:
        sizes: As of :func:`predictions`.
    """
    names = [name for name, _, _ in MODES]
    lines = [
        f"| card | memory | a step reads its weights in | {' | '.join(names)} |",
        f"| --- | --- | --- |{' --- |' * len(names)}",
    ]
    for card in CARDS:
        made = predictions(sizes, card)
        callers = " | ".join(str(made[name].callers or "none") for name in names)
        lines.append(
            f"| {card.name} | {card.memory_gib:g} GiB | {made['bfloat16'].step_ms:.1f} ms "
            f"| {callers} |"
        )
    return "\n".join(lines)


def callers_held(rows: list[dict[str, Any]], budget_ms: float = STEP_MS) -> int:
    """Return the most sessions whose slowest steps (p99) stay within a step's length."""
    return max(
        (row["slots"] for row in rows if row.get("p99_ms", budget_ms + 1) <= budget_ms), default=0
    )


def summary_table(figures: dict[str, Any]) -> str:
    """Return what was measured as a Markdown table, the prediction in the column beside it."""
    lines = ["| | predicted | measured |", "| --- | --- | --- |"]
    predicted = figures.get("prediction") or {}
    for name, rows in figures.get("step_times", {}).items():
        made = predicted.get(name.removesuffix(", no graphs"), {})
        one = next((row for row in rows if row["slots"] == 1 and "p50_ms" in row), None)
        step = f"{made['step_ms']:.1f} ms" if made else ""
        callers = str(made["callers"]) if made else ""
        if one:
            lines.append(f"| step of one session, {name} | {step} | {one['p50_ms']:.1f} ms |")
        most = max((row["slots"] for row in rows), default=0)
        held = callers_held(rows)
        more = " or more" if held == most and held else ""
        lines.append(f"| sessions in real time, {name} | {callers} | {held}{more} |")
    for row in figures.get("prefill", []):
        lines.append(
            f"| prefill of {row['steps']} steps: all, longest part | | "
            f"{row['all_ms']:.0f} ms, {row['longest_part_ms']:.0f} ms |"
        )
    joins = figures.get("joins_and_leaves")
    if joins:
        lines.append(
            f"| late steps while {joins['slots']} join and leave | 0 "
            f"| {joins['late']} of {joins['steps']} |"
        )
    same = figures.get("isolation")
    if same:
        lines.append(
            f"| steps equal alone and beside {same['slots'] - 1} others | | "
            f"{same['equal']} of {same['steps']} |"
        )
    return "\n".join(lines)


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Write ``gpu.json``, ``gpu.md`` and, where matplotlib is installed, ``gpu.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "gpu.md").write_text(summary_table(figures) + "\n")
    _plot(folder / "gpu.png", figures)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, rows in figures.get("step_times", {}).items():
        timed = [row for row in rows if "p50_ms" in row]
        slots = [row["slots"] for row in timed]
        line = axes.plot(slots, [row["p50_ms"] for row in timed], marker="o", label=name)
        made = (figures.get("prediction") or {}).get(name)
        if made:
            axes.axhline(made["step_ms"], color=line[0].get_color(), linestyle=":", linewidth=1)
    axes.axhline(STEP_MS, color="black", linewidth=1)
    axes.set(xlabel="sessions", ylabel="ms a step, median", title=figures.get("device", ""))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    chart.tight_layout()
    chart.savefig(path, dpi=110)
    pyplot.close(chart)
