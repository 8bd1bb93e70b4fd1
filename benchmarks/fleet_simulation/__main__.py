"""Simulate fleets of 10 to 10,000 workers: ``python -m benchmarks.fleet_simulation``."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fleet_simulation.erlang import erlang_b, slots_for
from benchmarks.fleet_simulation.fleet import SLOTS, Counts, Fleet, Plan

STEP_CALLS, STEP_MS = (1, 16, 64), (7.6, 26.1, 92.5)
"""Measured step time of the embedded model by calls (docs/callers.md)."""


def simulate(plan: Plan, seeds: int) -> Counts:
    """Simulate a plan with several seeds, and add up what happened."""
    total = Counts()
    for seed in range(seeds):
        counts = Fleet(dataclasses.replace(plan, seed=seed)).run()
        for name in ("calls", "refused", "tries", "moves", "lost"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.drains_secs += counts.drains_secs
        total.fullest += counts.fullest
        total.moves_a_sec.update({sec + 10**6 * seed: n for sec, n in counts.moves_a_sec.items()})
    return total


def step_ms(calls: float) -> float:
    """Return the step time of a worker with so many calls."""
    return float(np.interp(calls, STEP_CALLS, STEP_MS))


def show_choice(workers: Sequence[int], seeds: int) -> dict[tuple[int, float], Counts]:
    """Print what asking some workers costs and gains, by its number and the age of the answers."""
    print(
        "| workers | asked | age, s | fullest beyond the mean | its step, ms | refused "
        "| Erlang B | tries |"
    )
    print("|" + " --- |" * 8)
    kept: dict[tuple[int, float], Counts] = {}
    load = 0.9
    for count in workers:
        choices = [(1, 0.0), (2, 0.0), (8, 0.0), (8, 5.0)]
        for ask, age_secs in choices:
            secs = 600.0 if count <= 100 else 60.0 if count <= 1000 else 15.0
            plan = Plan(count, load=load, ask=ask, stale_secs=age_secs, secs=secs)
            if count > 1000:
                plan = dataclasses.replace(plan, warm_secs=15.0)
            counts = simulate(plan, seeds if count <= 100 else 1)
            fullest = float(np.mean(counts.fullest))
            if age_secs == 0:
                kept[count, ask] = counts
            ideal = erlang_b(count * SLOTS, load * count * SLOTS)
            print(
                f"| {count} | {ask} | {age_secs:g} | {fullest:.1f} "
                f"| {step_ms(load * SLOTS + fullest):.0f} | {share(counts.refused, counts.calls)} "
                f"| {100 * ideal:.4f} % | {counts.tries / counts.calls:.2f} |",
                flush=True,
            )
    return kept


def show_loads(seeds: int) -> tuple[list[float], dict[str, list[float]]]:
    """Print refusals by load, for small fleets."""
    print("\n| workers | load | refused | Erlang B |\n| --- | --- | --- | --- |")
    loads = [0.7, 0.8, 0.9, 0.95, 1.0]
    lines: dict[str, list[float]] = {}
    for count in (10, 100):
        for load in loads:
            counts = simulate(Plan(count, load=load), seeds if count <= 10 else 1)
            ideal = erlang_b(count * SLOTS, load * count * SLOTS)
            lines.setdefault(f"{count} workers", []).append(counts.refused / counts.calls)
            lines.setdefault(f"Erlang B, {count * SLOTS} slots", []).append(ideal)
            print(
                f"| {count} | {load:.2f} | {share(counts.refused, counts.calls)} "
                f"| {100 * ideal:.4f} % |",
                flush=True,
            )
    return loads, lines


def show_upgrades(workers: Sequence[int]) -> None:
    """Print what replacing every worker does, five in a hundred at a time."""
    print(
        "\n| workers | load | at once | whole fleet, min | drain p50 / most, s | moves "
        "| most moves in a second | lost |"
    )
    print("|" + " --- |" * 8)
    for count in workers:
        for load in (0.75, 0.9):
            at_once = max(1, count // 20)
            rounds = -(-count // at_once)
            plan = Plan(count, load=load, upgrade=True, at_once=at_once, secs=61.0 * rounds)
            counts = simulate(plan, 1)
            p50, most = np.percentile(counts.drains_secs, [50, 100])
            print(
                f"| {count} | {load} | {at_once} | {rounds * plan.start_secs / 60:.0f} "
                f"| {p50:.2f} / {most:.2f} | {counts.moves} | {max(counts.moves_a_sec.values())} "
                f"| {share(counts.lost, counts.moves)} |",
                flush=True,
            )


def show_deaths(workers: Sequence[int]) -> None:
    """Print what deaths do: each worker dies once in an hour, far more often than it should."""
    print("\n| workers | load | deaths' moves | most moves in a second | lost |")
    print("|" + " --- |" * 5)
    for count in workers:
        for load in (0.75, 0.9, 0.95):
            plan = Plan(count, load=load, deaths_a_worker_day=24)
            counts = simulate(plan, 3 if count <= 100 else 1)
            most = max(counts.moves_a_sec.values(), default=0)
            lost = share(counts.lost, counts.moves)
            print(f"| {count} | {load} | {counts.moves} | {most} | {lost} |", flush=True)


def show_sizes() -> None:
    """Print how many slots so many calls need."""
    print("\n| calls at a time | slots for 0.1 % refused | for 1 % | load at 0.1 % |")
    print("|" + " --- |" * 4)
    for calls in (10, 30, 100, 300, 1000, 10_000):
        few, more = slots_for(calls, 0.001), slots_for(calls, 0.01)
        print(f"| {calls} | {few} | {more} | {calls / few:.2f} |")


def share(part: int, whole: int) -> str:
    """Return a share for the table, with the counts behind it."""
    return f"{100 * part / max(1, whole):.3f} % ({part} of {whole})"


def draw(
    path: Path,
    loads: list[float],
    lines: dict[str, list[float]],
    kept: dict[tuple[int, float], Counts],
) -> None:
    """Draw refusals by load, and how full the fullest worker is by the number asked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), dpi=80, layout="constrained")
    for name, values in lines.items():
        style = "--" if name.startswith("Erlang") else "o-"
        left.semilogy(loads, np.maximum(values, 1e-6), style, label=name, markersize=4)
    left.set(xlabel="load, share of all slots", ylabel="refused", ylim=(1e-6, 0.2))
    left.legend(fontsize=7)
    workers = sorted({count for count, _ in kept})
    for ask in (1, 2, 8):
        means = [float(np.mean(kept[count, ask].fullest)) for count in workers]
        right.semilogx(workers, means, "o-", label=f"{ask} asked", markersize=4)
    right.set(xlabel="workers", ylabel="fullest: calls beyond the mean", ylim=0)
    right.legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    """Simulate everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="10,100,1000,10000")
    parser.add_argument("--seeds", type=int, default=5, help="of small fleets")
    parser.add_argument("--only", choices=["choice", "loads", "upgrades", "deaths", "sizes"])
    parser.add_argument("--plot", type=Path, help="Draw it (PNG).")
    args = parser.parse_args()
    workers = [int(count) for count in args.workers.split(",")]
    small = [count for count in workers if count <= 1000]
    only = args.only
    kept = show_choice(workers, args.seeds) if only in (None, "choice") else None
    loads = show_loads(args.seeds) if only in (None, "loads") else None
    if only in (None, "upgrades"):
        show_upgrades(small)
    if only in (None, "deaths"):
        show_deaths(small)
    if only in (None, "sizes"):
        show_sizes()
    if args.plot and kept and loads:
        draw(args.plot, *loads, kept)


if __name__ == "__main__":
    main()
