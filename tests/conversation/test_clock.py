"""The clocks: silence for late audio, and no delay that stays."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.conversation.clock import ClockSettings, InputClock, OutputClock
from pipecat_duplex.session import STEP_SECS


def feed(clock: InputClock, arrivals: list[float], until: float, quiet: bool = False):
    """Let steps arrive at the given times, and fill when silence is due, as the service does.

    Returns:
        The kinds of the steps that the model hears: ``a`` audio, ``.`` silence.
    """
    heard = ""
    arrivals = sorted(arrivals)
    now = 0.0
    while True:
        wait = clock.secs_to_fill(now)
        fill_at = math.inf if wait is None else now + max(0.0, wait)
        arrival_at = arrivals[0] if arrivals else math.inf
        now = max(now, min(fill_at, arrival_at))
        if now >= until:
            return heard
        if arrival_at <= fill_at:
            arrivals.pop(0)
            heard += "a" if clock.admit(now, quiet=quiet) else ""
        else:
            heard += "." if clock.fill(now) else ""


def on_time(first: int, count: int) -> list[float]:
    return [(i + 1) * STEP_SECS for i in range(first, first + count)]


def test_steady_audio_is_heard_as_it_comes():
    clock = InputClock()
    assert feed(clock, on_time(0, 100), until=8.01) == "a" * 100
    assert clock.filled_steps == clock.dropped_steps == 0


def test_muted_microphone_becomes_silence_and_nothing_after_it_is_lost():
    clock = InputClock()
    heard = feed(clock, on_time(0, 25) + on_time(62, 25), until=87.5 * STEP_SECS)
    # 37 steps are missing; the last is still being waited for when the audio comes back.
    assert heard == "a" * 25 + "." * 36 + "a" * 25
    assert clock.dropped_steps == 0


def test_late_audio_is_not_heard_a_second_time():
    """Steps 10 to 19 come in one burst, 0.8 s late: silence has taken their place."""
    clock = InputClock()
    burst = [20 * STEP_SECS] * 10
    heard = feed(clock, on_time(0, 10) + burst + on_time(20, 30), until=50.5 * STEP_SECS)
    assert heard.count("a") + clock.dropped_steps == 50
    assert len(heard) <= 50 + ClockSettings().slack_secs / STEP_SECS


def test_jitter_below_the_patience_changes_nothing():
    clock = InputClock()
    arrivals = [t + (0.06 if i % 3 == 1 else 0) for i, t in enumerate(on_time(0, 100))]
    assert feed(clock, arrivals, until=8.1) == "a" * 100


def test_quiet_steps_make_up_for_a_burst():
    clock = InputClock()
    feed(clock, on_time(0, 10), until=15 * STEP_SECS)
    assert clock.filled_steps == 3
    # The audio of those steps comes late, in a burst; after it, the user pauses.
    burst = [clock.admit(15 * STEP_SECS, quiet=False) for _ in range(7)]
    assert burst == [True] * 5 + [False] * 2
    pause = [clock.admit((i + 1) * STEP_SECS, quiet=True) for i in range(15, 30)]
    assert pause.count(False) == 3 and all(pause[-10:])


def test_no_silence_before_the_start_and_none_with_infinite_patience():
    assert InputClock().secs_to_fill(5.0) is None
    clock = InputClock(ClockSettings(patience_secs=math.inf))
    clock.admit(0.0, quiet=False)
    assert clock.secs_to_fill(100.0) is None and not clock.fill(100.0)


def test_started_clock_fills_before_any_audio():
    clock = InputClock()
    clock.start(0.0)
    assert feed(clock, [], until=1.0) == "." * 11


def test_a_machine_that_slept_does_not_fill_an_hour():
    clock = InputClock()
    clock.admit(0.0, quiet=False)
    assert clock.fill(3600.0) and not clock.fill(3600.0)
    assert clock.secs_to_fill(3600.0) > 0


def test_due_needs_a_start():
    with pytest.raises(RuntimeError):
        _ = InputClock().due_secs


def test_due_is_the_end_of_the_last_step():
    clock = InputClock()
    clock.start(10.0)
    assert clock.admit(10.1, quiet=False)
    assert clock.due_secs == pytest.approx(10.08)
    assert clock.fill(10.25)
    assert clock.due_secs == pytest.approx(10.16)


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=150), st.booleans())
def test_any_arrivals_leave_the_time_line_near_real_time(arrivals, quiet):
    clock = InputClock()
    clock.start(0.0)
    heard = feed(clock, arrivals, until=10.0, quiet=quiet)
    settings = ClockSettings()
    assert heard.count("a") + clock.dropped_steps == len([t for t in arrivals if t < 10.0])
    assert heard.count(".") == clock.filled_steps
    due = 10.0 / STEP_SECS
    assert len(heard) <= due + settings.slack_secs / STEP_SECS + 1
    assert len(heard) >= due - settings.patience_secs / STEP_SECS - 1


def play(delays: dict[int, float], steps: int, *, quiet_every: int = 0, compute: float = 0.01):
    """Run steps through an output clock.

    Args:
        delays: Extra computing time of single steps.
        steps: How many.
        quiet_every: Every this many steps one is silent.
        compute: Computing time of every step.

    Returns:
        For each step whether it was pushed, and the clock's lag at it, with its time.
    """
    clock = OutputClock()
    done = 0.0
    rows = []
    for i in range(steps):
        due = (i + 1) * STEP_SECS
        done = max(done, due) + compute + delays.get(i, 0.0)
        clock.observe(done, due)
        quiet = bool(quiet_every) and i % quiet_every == 0
        rows.append((clock.admit(quiet=quiet), clock.lag_secs, done))
    return rows


def test_no_stall_no_drop():
    assert all(pushed and lag < 0.02 for pushed, lag, _ in play({}, 200))


@pytest.mark.parametrize("compute", [0.005, 0.02, 0.04])
@pytest.mark.parametrize("quiet_every", [0, 7])
def test_after_a_stall_the_old_delay_is_back_within_two_seconds(compute, quiet_every):
    rows = play({50: 1.5}, 200, quiet_every=quiet_every, compute=compute)
    stalled = rows[50][2]
    assert rows[50][1] == pytest.approx(1.5, abs=0.01)
    late = [(pushed, lag, t) for pushed, lag, t in rows if t > stalled + 2.0]
    assert late and all(lag <= STEP_SECS + 1e-9 for _, lag, _ in late)
    assert all(pushed for pushed, _, _ in late)
    if quiet_every:
        assert late[-1][1] <= STEP_SECS / 2


def test_speech_much_too_old_is_never_heard():
    rows = play({50: 1.5}, 200)
    assert all(lag <= 2 * ClockSettings().max_lag_secs for pushed, lag, _ in rows if pushed)


def test_a_small_hiccup_drops_nothing():
    assert all(pushed for pushed, _, _ in play({50: 0.06, 90: 0.05}, 150))


def test_flush_forgets_what_was_queued():
    clock = OutputClock()
    for _ in range(10):
        clock.observe(1.0, 0.9)
        clock.admit(quiet=False)
    clock.observe(1.02, 0.9)
    queued = clock.lag_secs
    clock.flush()
    clock.observe(1.02, 0.9)
    assert clock.lag_secs < queued


def play_in_bursts(held_secs: Callable[[int], float], steps: int = 400) -> str:
    """Run steps of speech through an output clock, each held back, in order.

    Args:
        held_secs: How long a step is held back.
        steps: How many.

    Returns:
        The steps: ``a`` heard, ``.`` left out.
    """
    clock = OutputClock()
    now = 0.0
    heard = ""
    for i in range(steps):
        due = (i + 1) * STEP_SECS
        now = max(now, due + 0.01 + held_secs(i))
        clock.observe(now, due)
        heard += "a" if clock.admit(quiet=False) else "."
    return heard


@pytest.mark.parametrize("every", [3, 5, 12, 25])
@pytest.mark.parametrize("held_secs", [0.08, 0.16, 0.2])
def test_jitter_that_lasts_makes_no_holes(every: int, held_secs: float):
    heard = play_in_bursts(lambda i: held_secs if i % every == 2 else 0.0)
    # Until jitter has come twice, it looks like a stall, which is made up for.
    assert heard[:50].count(".") <= 2
    assert "." not in heard[50:]


def test_no_holes_where_every_step_is_a_little_late():
    heard = play_in_bursts(lambda i: 0.0 if i < 20 else 0.1 + 0.08 * (i % 2))
    assert "." not in heard


def test_a_queue_goes_when_the_jitter_has_gone():
    clock = OutputClock()
    now = 0.0
    lags = []
    for i in range(400):
        due = (i + 1) * STEP_SECS
        now = max(now, due + 0.01 + (0.2 if i < 100 and i % 5 == 0 else 0.0))
        clock.observe(now, due)
        clock.admit(quiet=False)
        lags.append(clock.lag_secs)
    assert lags[99] > STEP_SECS
    assert max(lags[100 + round(11 / STEP_SECS) :]) <= STEP_SECS + 1e-6


@pytest.mark.parametrize("stall_secs", [0.3, 0.5, 1.5])
def test_a_stall_makes_one_hole(stall_secs: float):
    heard = "".join("a" if pushed else "." for pushed, *_ in play({50: stall_secs}, 200))
    assert len(heard.strip("a").split("a")) == 1
    assert heard.count(".") <= stall_secs / STEP_SECS * 1.3


def test_steps_that_stay_late_are_heard():
    heard = play_in_bursts(lambda i: 0.0 if i < 50 else 0.4)
    assert heard.count(".") <= 5


def test_audio_ahead_of_the_time_line_makes_no_later_step_late():
    clock = OutputClock()
    for i in range(20):
        due = (i + 1) * STEP_SECS
        clock.observe(due + (-0.2 if i < 3 else 0.01), due)
    assert clock.lag_secs <= 0.02


@pytest.mark.parametrize("late_secs", [0.09, 0.1, 0.13, 0.2, 0.5, 3.0])
def test_audio_that_is_late_now_and_then_leaves_the_time_line_where_it_is(late_secs):
    """Silence takes its place, and it passes as well: that is made up for, not taken for drift."""
    clock = InputClock()
    steps = 5 * 60 * 12
    arrivals_secs = [(step + 1) * STEP_SECS + 0.005 for step in range(steps)]
    for step in range(300, steps, 300):
        held_secs = arrivals_secs[step] + late_secs
        for behind in range(step, steps):
            arrivals_secs[behind] = max(arrivals_secs[behind], held_secs)
    step, now_secs = 0, 0.0
    while step < steps:
        now_secs += 0.005
        if clock.started:
            clock.fill(now_secs)
        while step < steps and arrivals_secs[step] <= now_secs + 1e-9:
            clock.admit(now_secs, quiet=step % 40 > 20)
            step += 1
    assert abs((clock.place + 1) * STEP_SECS - now_secs) < 0.06
