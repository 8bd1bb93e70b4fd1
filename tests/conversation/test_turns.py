"""Turn events on written traces, and what holds on any trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.conversation.turns import (
    AgentStarted,
    AgentStopped,
    Backchannel,
    TurnEvent,
    TurnTracker,
    UserStarted,
    UserStopped,
    UserVoice,
    Yielded,
)
from pipecat_duplex.session import STEP_SECS

LOUD_DB, SILENT_DB = -20.0, -80.0
QUIET_USER = dict(user=UserVoice.QUIET, user_level_db=SILENT_DB)
VOICES = {
    ".": UserVoice.QUIET,
    "s": UserVoice.STARTING,
    "U": UserVoice.SPEAKING,
    "o": UserVoice.STOPPING,
}


def run(user: str, agent: str) -> list[TurnEvent]:
    """Run a trace: a character a step.

    User: ``.`` quiet, ``s`` starting, ``U`` speaking, ``o`` stopping. Agent: ``.`` silent, ``A``
    sound, ``w`` a word without sound.
    """
    tracker = TurnTracker()
    events: list[TurnEvent] = []
    length = max(len(user), len(agent))
    for index, (u, a) in enumerate(
        zip(user.ljust(length, "."), agent.ljust(length, "."), strict=True)
    ):
        events += tracker.step(
            index,
            user=VOICES[u],
            user_level_db=LOUD_DB if u in "sU" else SILENT_DB,
            agent_level_db=LOUD_DB if a == "A" else SILENT_DB,
            agent_word=a == "w",
        )
    return events + tracker.finish()


def run_levels(levels_db: list[float], *, speaks_from: int, agent_until: int) -> list[TurnEvent]:
    """Run levels of the user's, whom the detector is sure of from a step on, over the agent."""
    tracker = TurnTracker()
    events: list[TurnEvent] = []
    for index, level_db in enumerate(levels_db):
        events += tracker.step(
            index,
            user=UserVoice.SPEAKING if index >= speaks_from else UserVoice.QUIET,
            user_level_db=level_db,
            agent_level_db=LOUD_DB if index < agent_until else SILENT_DB,
            agent_word=False,
        )
    return events


def kinds(events: list[TurnEvent]) -> list[type]:
    return [type(event) for event in events]


def test_silence_is_no_event():
    assert run("." * 50, "." * 50) == []


def test_question_and_answer():
    events = run("..ssUUUUUoo.", ".............AAAAAAAA.......")
    assert kinds(events) == [UserStarted, UserStopped, AgentStarted, AgentStopped]
    started, stopped, agent_started, agent_stopped = events
    assert started.time_secs == pytest.approx(2 * STEP_SECS)
    assert started.voice_secs == pytest.approx(3 * STEP_SECS)
    assert not started.over_agent
    # The last voiced step is 8; it ends with second 9 * 80 ms.
    assert stopped.time_secs == pytest.approx(9 * STEP_SECS)
    # Agent step 13 can be heard from 14 * 80 ms on; step 20 is its last.
    assert agent_started.time_secs == pytest.approx(14 * STEP_SECS)
    assert agent_stopped.time_secs == pytest.approx(22 * STEP_SECS)
    assert not agent_stopped.yielded


def test_a_word_opens_the_utterance_before_its_sound():
    events = run("", "..w..AAA")
    assert kinds(events) == [AgentStarted, AgentStopped]
    assert events[0].step_index == 2


def test_pause_inside_an_utterance_keeps_it_open():
    assert kinds(run("", "AAA.....AAA......")) == [AgentStarted, AgentStopped]


@pytest.mark.parametrize("pause", [2, 3, 4, 5])
@pytest.mark.parametrize("onset", ["w", "A"])
def test_an_answer_right_after_a_yield_is_an_utterance_of_its_own(pause, onset):
    """The user says "stop" over a story; the model falls silent, and says "okay"."""
    user = "." * 10 + "ssUUUo" + "o" * 4
    agent = "A" * (16 - pause) + "." * pause + onset + "AAAA" + "." * 10
    events = run(user, agent)
    if pause < 4:
        assert kinds(events) == [
            AgentStarted,
            UserStarted,
            Yielded,
            AgentStopped,
            UserStopped,
            AgentStarted,
            AgentStopped,
        ]
        assert [e.step_index for e in events[2:6]] == [16] * 4
    stops = [event for event in events if isinstance(event, AgentStopped)]
    assert [event.yielded for event in stops] == [True, False]
    (yielded,) = [event for event in events if isinstance(event, Yielded)]
    assert yielded.time_secs == pytest.approx((17 - pause) * STEP_SECS)


@pytest.mark.parametrize("pause", [2, 4, 5])
def test_a_voice_too_short_for_the_detector_counts_if_an_answer_follows(pause):
    events = run("." * 12 + "sss" + "." * 20, "A" * 14 + "." * pause + "wAAA" + "." * 10)
    assert kinds(events) == [AgentStarted, Yielded, AgentStopped, AgentStarted, AgentStopped]
    for agent in ("A" * 40, "A" * 14 + "." * 10):
        assert Yielded not in kinds(run("." * 12 + "sss" + "." * 20, agent))
    assert Yielded not in kinds(run("." * 13 + "ss" + "." * 20, "A" * 15 + "..wAAA"))


@pytest.mark.parametrize(
    ("user", "agent"),
    [
        # A pause of one step is none.
        ("." * 10 + "ssUUUoooo", "A" * 15 + "." + "A" * 20),
        # The pause began before the user did.
        ("." * 10 + "ssUUUoooo", "A" * 10 + "..." + "A" * 25),
        # It ended while the user went on.
        ("." * 10 + "ssUUUUUUUoooo", "A" * 13 + ".." + "A" * 25),
        # The user was silent.
        ("", "A" * 13 + "..." + "A" * 20),
    ],
)
def test_a_short_pause_under_the_users_voice_is_no_yield(user, agent):
    events = run(user, agent)
    assert [event.yielded for event in events if isinstance(event, AgentStopped)] == [False]


def test_given_words_go_on_after_a_short_pause():
    tracker, events = TurnTracker(), []
    for index, (u, a) in enumerate(zip("." * 10 + "ssUUUooo", "A" * 14 + ".." + "ww", strict=True)):
        events += tracker.step(
            index,
            user=VOICES[u],
            user_level_db=LOUD_DB if u in "sU" else SILENT_DB,
            agent_level_db=LOUD_DB if a == "A" else SILENT_DB,
            agent_word=a == "w",
            given_word=a == "w",
        )
    assert not [event for event in events if isinstance(event, AgentStopped)]


def test_level_between_the_thresholds_neither_opens_nor_closes():
    tracker = TurnTracker()
    for index in range(20):
        level_db = LOUD_DB if index == 10 else -48.0
        events = tracker.step(
            index,
            user=UserVoice.QUIET,
            user_level_db=SILENT_DB,
            agent_level_db=level_db,
            agent_word=False,
        )
        assert kinds(events) == ([AgentStarted] if index == 10 else [])
    assert tracker.agent_speaking


def test_yield():
    events = run("......ssUUUUUUUUUU", "AAAAAAAAAAAA......")
    assert kinds(events) == [AgentStarted, UserStarted, Yielded, AgentStopped, UserStopped]
    assert events[1].over_agent
    # The user's first sound is in step 6, the agent's first silent step is 12.
    assert events[2].delay_secs == pytest.approx(6 * STEP_SECS)
    assert events[2].time_secs == pytest.approx(13 * STEP_SECS)
    assert events[3].yielded


def test_yield_is_noticed_sooner_than_a_plain_end():
    plain = run("", "AAAAAAAA" + "." * 20)[1]
    yielded = run("..ssUUUUUUUU", "AAAAAAAA" + "." * 20)
    yielded = next(event for event in yielded if isinstance(event, Yielded))
    assert yielded.step_index < plain.step_index


def test_short_stop_word_still_yields():
    """The user's "stop" is over before the agent has fallen silent."""
    events = run("....ssUUoo..........", "AAAAAAAAAAAA........")
    assert kinds(events) == [AgentStarted, UserStarted, UserStopped, Yielded, AgentStopped]


def test_yield_that_is_faster_than_the_detector():
    """The agent is silent before the detector is sure: the user's level tells who was first."""
    events = run_levels(
        [LOUD_DB if index >= 8 and index not in (10, 11) else SILENT_DB for index in range(20)],
        speaks_from=14,
        agent_until=12,
    )
    assert kinds(events)[:4] == [AgentStarted, UserStarted, Yielded, AgentStopped]
    assert events[1].time_secs == pytest.approx(8 * STEP_SECS)
    assert events[2].delay_secs == pytest.approx(4 * STEP_SECS)


def test_a_faint_onset_on_a_silent_line_counts():
    """The agent yields to the first sound of an "s", before the voice is loud."""
    levels_db = [*8 * [-120.0], *2 * [-54.0], *10 * [LOUD_DB]]
    events = run_levels(levels_db, speaks_from=10, agent_until=10)
    assert kinds(events)[:4] == [AgentStarted, UserStarted, Yielded, AgentStopped]
    assert events[1].time_secs == pytest.approx(8 * STEP_SECS)


def test_noise_is_not_the_users_onset():
    tracker = TurnTracker()
    for index in range(30):
        speaking = index >= 20
        events = tracker.step(
            index,
            user=UserVoice.SPEAKING if index >= 23 else UserVoice.QUIET,
            user_level_db=-20.0 if speaking else -35.0,
            agent_level_db=SILENT_DB,
            agent_word=False,
        )
        if events:
            (event,) = events
            assert event.time_secs == pytest.approx(20 * STEP_SECS)


def test_backchannel_is_no_interruption():
    events = run("....ssUUUoo.........", "A" * 40)
    assert kinds(events) == [AgentStarted, UserStarted, UserStopped, Backchannel, AgentStopped]
    assert events[3].duration_secs == pytest.approx(5 * STEP_SECS)
    assert events[3].time_secs == pytest.approx(4 * STEP_SECS)
    assert not events[4].yielded


def test_agent_that_had_finished_does_not_yield():
    """The user begins in the hangover of the agent's last word."""
    events = run(".........ssUUUUUUUU", "AAAAAAAA...........")
    assert kinds(events) == [AgentStarted, AgentStopped, UserStarted, UserStopped]
    assert not events[1].yielded and not events[2].over_agent


def test_short_agent_speech_inside_the_users_is_no_yield():
    events = run("ssUUUUUUUUUUUUUUUUUUUUUU", "........AAAA............")
    assert kinds(events) == [UserStarted, AgentStarted, AgentStopped, UserStopped]
    assert events[1].over_user and not events[2].yielded


def test_quick_answer_ends_the_users_turn_first():
    """The agent answers before the detector is sure that the user has stopped."""
    events = run("ssUUUUUooooo", ".......wAAAAAAAA")
    assert kinds(events)[:3] == [UserStarted, UserStopped, AgentStarted]
    assert events[1].quiet_secs == pytest.approx(STEP_SECS)


def test_interrupt_ends_the_utterance_and_the_next_sound_opens_one():
    tracker = TurnTracker()
    loud = QUIET_USER | dict(agent_level_db=LOUD_DB, agent_word=False)
    assert kinds(tracker.step(0, **loud)) == [AgentStarted]
    assert kinds(tracker.interrupt()) == [AgentStopped]
    assert tracker.interrupt() == []
    assert kinds(tracker.step(1, **loud)) == [AgentStarted]


def test_steps_do_not_go_back():
    tracker = TurnTracker()
    step = QUIET_USER | dict(agent_level_db=SILENT_DB, agent_word=False)
    tracker.step(5, **step)
    with pytest.raises(ValueError, match="step 5 comes after step 5"):
        tracker.step(5, **step)


observations = st.tuples(
    st.integers(1, 3),
    st.sampled_from(list(UserVoice)),
    st.sampled_from([SILENT_DB, -48.0, LOUD_DB]),
    st.sampled_from([SILENT_DB, -48.0, LOUD_DB]),
    st.booleans(),
    st.sampled_from([False] * 19 + [True]),
)


@given(st.lists(observations, max_size=300))
def test_any_trace_gives_closed_brackets(trace):
    tracker = TurnTracker()
    events: list[TurnEvent] = []
    index = -1
    for skip, user, user_level_db, agent_level_db, word, interrupt in trace:
        index += skip
        events += tracker.step(
            index,
            user=user,
            user_level_db=user_level_db,
            agent_level_db=agent_level_db,
            agent_word=word,
        )
        if interrupt:
            events += tracker.interrupt()
    events += tracker.finish()
    assert_well_formed(events)
    assert not tracker.agent_speaking and not tracker.user_speaking


def assert_well_formed(events: list[TurnEvent]) -> None:
    agent = user = False
    for i, event in enumerate(events):
        if isinstance(event, AgentStarted):
            assert not agent
            agent = True
        elif isinstance(event, AgentStopped):
            assert agent
            agent = False
            assert event.yielded == isinstance(events[i - 1], Yielded)
        elif isinstance(event, UserStarted):
            assert not user
            assert event.over_agent == agent
            assert event.voice_secs > 0
            user = True
        elif isinstance(event, UserStopped):
            assert user
            assert event.quiet_secs >= 0
            user = False
        elif isinstance(event, Yielded):
            assert agent and event.delay_secs > 0
            assert isinstance(events[i + 1], AgentStopped)
        elif isinstance(event, Backchannel):
            assert agent and event.duration_secs > 0
    assert not agent and not user
    indices = [event.step_index for event in events]
    assert indices == sorted(indices)
