"""What the server counts, in Prometheus' text format."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

from pipecat_duplex.session import STEP_SECS, Step, StepTiming

STEP_BUCKETS_SECS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.12, 0.2, 0.5, 1, 2, 5)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "pipecat_duplex_"


class Histogram:
    """How often a time fell into which bucket."""

    def __init__(self, buckets_secs: tuple[float, ...] = STEP_BUCKETS_SECS):
        """Initialize without times.

        Args:
            buckets_secs: Upper bounds, rising.
        """
        self.count = 0
        self.total_secs = 0.0
        self._bounds_secs = buckets_secs
        self._counts = [0] * (len(buckets_secs) + 1)

    def add(self, secs: float) -> None:
        """Count a time."""
        self.count += 1
        self.total_secs += secs
        self._counts[bisect_left(self._bounds_secs, secs)] += 1

    def lines(self, name: str) -> Iterable[str]:
        """Return the histogram as samples of a metric."""
        bounds = [f"{bound:g}" for bound in self._bounds_secs] + ["+Inf"]
        for bound, count in zip(bounds, accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.total_secs:.6f}"
        yield f"{name}_count {self.count}"


class Metrics:
    """Counts since the start of the server, over all sessions."""

    def __init__(self):
        """Initialize at zero."""
        self.sessions = 0
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.steps = 0
        self.late_steps = 0
        self.step_secs = Histogram()
        self.delay_secs = Histogram()
        self.hearing_delay_secs = Histogram()

    def add_step(self, timing: StepTiming) -> float:
        """Count a step of a session.

        Args:
            timing: Where its time went.

        Returns:
            Its delay: from having the frame to having the answer.
        """
        delay_secs = timing.waited_secs + timing.compute_secs
        self.steps += 1
        self.late_steps += delay_secs > STEP_SECS
        self.step_secs.add(timing.compute_secs)
        self.delay_secs.add(delay_secs)
        return delay_secs

    def add_heard(self, step: Step) -> None:
        """Count the user's words that were recognised by a step."""
        for word in step.heard:
            self.hearing_delay_secs.add((step.index + 1 - word.end_step) * STEP_SECS)

    def render(
        self, *, slots: int, used: int, lag_secs: float, draining: bool, healthy: bool = True
    ) -> str:
        """Return everything as text.

        Args:
            slots: Sessions that the server has room for.
            used: Sessions at this moment.
            lag_secs: The longest delay beyond a step's length: of a last step, or of one that has
                not come back.
            draining: Whether new sessions are refused for good.
            healthy: Whether conversations are served.
        """
        lines: list[str] = []

        def metric(name: str, kind: str, help_text: str, samples: Iterable[str]) -> None:
            lines.append(f"# HELP {_PREFIX}{name} {help_text}")
            lines.append(f"# TYPE {_PREFIX}{name} {kind}")
            lines.extend(samples)

        def single(name: str, kind: str, help_text: str, value: float) -> None:
            metric(name, kind, help_text, [f"{_PREFIX}{name} {value:g}"])

        def labelled(name: str, help_text: str, counts: Counter[str]) -> None:
            samples = [f'{_PREFIX}{name}{{reason="{r}"}} {n}' for r, n in sorted(counts.items())]
            metric(name, "counter", help_text, samples)

        single("slots", "gauge", "Sessions that the server has room for.", slots)
        single("slots_used", "gauge", "Sessions at this moment.", used)
        single("draining", "gauge", "1 while new sessions are refused for good.", draining)
        single("healthy", "gauge", "1 while conversations are served.", healthy)
        single(
            "lag_seconds", "gauge", "Longest delay of a step beyond 80 ms, back or not.", lag_secs
        )
        single("sessions_total", "counter", "Sessions that began.", self.sessions)
        labelled("sessions_ended_total", "Sessions that ended.", self.ended)
        labelled("refusals_total", "Callers that were refused.", self.refused)
        single("steps_total", "counter", "Steps of all sessions.", self.steps)
        single("late_steps_total", "counter", "Steps answered after 80 ms.", self.late_steps)
        name = "step_seconds"
        metric(name, "histogram", "Computing time of a step.", self.step_secs.lines(_PREFIX + name))
        name = "step_delay_seconds"
        metric(name, "histogram", "From frame to answer.", self.delay_secs.lines(_PREFIX + name))
        name = "hearing_delay_seconds"
        lines_of_words = self.hearing_delay_secs.lines(_PREFIX + name)
        metric(name, "histogram", "From a user's word to its being told.", lines_of_words)
        return "\n".join(lines) + "\n"
