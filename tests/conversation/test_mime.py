"""When a model that only believes that it speaks would give up the floor."""

from pipecat_duplex.conversation.mime import HEARD_STEPS, LEAD_STEPS, Mime
from pipecat_duplex.conversation.turns import AgentStopped, TurnTracker, UserVoice, Yielded

LOUD, QUIET = -20.0, -80.0


def mime(yield_steps: int = 2) -> Mime:
    """A mime that tells its story, after a while in which nobody spoke."""
    made = Mime(yield_steps)
    for _ in range(20):
        made.step(agent_level_db=QUIET, user_level_db=QUIET)
    made.begin()
    for _ in range(LEAD_STEPS):
        assert not made.step(agent_level_db=LOUD, user_level_db=QUIET)
    return made


def run(made: Mime, *steps: tuple[float, float]) -> list[bool]:
    return [made.step(agent_level_db=agent, user_level_db=user) for agent, user in steps]


def test_silence_under_the_users_voice_is_a_yield() -> None:
    made = mime()
    assert run(made, (LOUD, LOUD), (LOUD, LOUD), (QUIET, LOUD), (QUIET, LOUD)) == [
        False,
        False,
        False,
        True,
    ]
    assert made.over_steps == 4


def test_silence_without_a_user_is_a_pause() -> None:
    assert not any(run(mime(), *[(QUIET, QUIET)] * 30))


def test_silence_that_began_before_the_user_spoke_is_no_yield_at_once() -> None:
    made = mime()
    assert run(made, (QUIET, QUIET), (QUIET, LOUD), (LOUD, LOUD)) == [False, False, False]
    assert run(made, (QUIET, LOUD), (QUIET, QUIET)) == [False, True]


def test_a_pause_that_goes_on_as_the_user_speaks_is_a_yield_after_a_while() -> None:
    made = mime()
    told = run(made, (QUIET, QUIET), *[(QUIET, LOUD)] * 9)
    assert told.index(True) == 7


def unheeded(made: Mime, *steps: tuple[float, float]) -> list[bool]:
    return [
        made.step(agent_level_db=agent, user_level_db=user, unheeded=user == LOUD)
        for agent, user in steps
    ]


def test_a_pause_under_what_the_model_does_not_hear_is_no_yield() -> None:
    made = mime()
    assert not any(unheeded(made, (LOUD, LOUD), *[(QUIET, LOUD)] * 6, *[(QUIET, QUIET)] * 9))


def test_a_voice_that_the_model_hears_at_last_is_yielded_to() -> None:
    made = mime()
    assert not any(unheeded(made, *[(LOUD, LOUD)] * 3, (QUIET, LOUD)))
    assert run(made, (LOUD, LOUD), (QUIET, LOUD), (QUIET, LOUD)) == [False, False, True]
    assert made.over_steps == 7


def test_a_pause_after_a_moment_that_the_model_heard_is_no_yield() -> None:
    made = mime()
    assert not any(run(made, *[(LOUD, LOUD)] * (HEARD_STEPS - 1)))
    assert not any(unheeded(made, *[(QUIET, LOUD)] * 4, *[(QUIET, QUIET)] * 9))


def test_a_pause_that_began_before_the_model_hears_is_a_yield_after_a_while() -> None:
    made = mime()
    assert not any(unheeded(made, (LOUD, LOUD), *[(QUIET, LOUD)] * 3))
    assert run(made, *[(QUIET, LOUD)] * 4) == [False, False, True, True]


def test_a_hum_that_the_story_talks_through_is_forgotten() -> None:
    made = mime()
    assert not any(run(made, *[(LOUD, LOUD)] * 5, *[(LOUD, QUIET)] * 15, *[(QUIET, QUIET)] * 5))
    assert made.over_steps == 0


def test_who_spoke_before_the_voice_began_does_not_talk_over_it() -> None:
    made = Mime(2)
    run(made, *[(QUIET, QUIET)] * 20, *[(QUIET, LOUD)] * 10)
    made.begin()
    assert not any(run(made, *[(LOUD, QUIET)] * 4, *[(QUIET, QUIET)] * 4))


def test_a_story_that_does_not_begin_because_the_user_speaks_is_a_yield() -> None:
    made = Mime(2)
    run(made, *[(QUIET, QUIET)] * 20)
    made.begin()
    told = run(made, *[(QUIET, LOUD)] * (LEAD_STEPS + 2))
    assert told.index(True) == LEAD_STEPS


def test_nothing_is_given_up_before_the_voice_sounds_and_after_it() -> None:
    made = Mime(2)
    assert not any(run(made, *[(QUIET, QUIET)] * 20, *[(QUIET, LOUD)] * 10))
    made = mime()
    made.end()
    assert not any(run(made, *[(QUIET, LOUD)] * 10))


def test_a_tracker_is_told_of_it() -> None:
    tracker = TurnTracker()
    for index in range(10):
        tracker.step(
            index,
            user=UserVoice.QUIET,
            user_level_db=QUIET,
            agent_level_db=LOUD,
            agent_word=False,
        )
    yielded, stopped = tracker.give_up(4)
    assert isinstance(yielded, Yielded) and isinstance(stopped, AgentStopped)
    assert (yielded.time_secs, yielded.delay_secs, stopped.yielded) == (0.8, 0.32, True)
    assert not tracker.agent_speaking
    assert tracker.give_up(4) == []
