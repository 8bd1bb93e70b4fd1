"""Whether the user has said something, and waits for an answer."""

from pipecat_duplex.conversation.barge_in import Overlap
from pipecat_duplex.conversation.user_said import (
    ANSWERED_STEPS,
    PATIENCE_STEPS,
    SAID_STEPS,
    UserSaid,
)

VOICE, HUM, NOISE = Overlap(0.0, 0.0, 1.0), Overlap(0.0, 1.0, 0.0), Overlap(1.0, 0.0, 0.0)
MUSIC = Overlap(0.05, 0.0, 0.95)


def due(*heard: tuple[Overlap, int], agent: range = range(0)) -> list[int]:
    """Return the steps in which an answer is due; the agent speaks in some."""
    said = UserSaid()
    steps = [overlap for overlap, times in heard for _ in range(times)]
    told = [said.step(each, agent_speaks=at in agent) for at, each in enumerate(steps)]
    return [step for step, is_due in enumerate(told) if is_due]


def test_who_has_said_something_and_waits_is_answered_once():
    assert due((VOICE, 10), (NOISE, 100)) == [9 + PATIENCE_STEPS]


def test_a_pause_is_not_the_end():
    heard = (VOICE, 10), (NOISE, PATIENCE_STEPS - 1), (VOICE, 10), (NOISE, 100)
    assert due(*heard) == [38 + PATIENCE_STEPS]


def test_a_hum_a_knock_and_music_are_owed_nothing():
    for sound in ((HUM, 10), (VOICE, SAID_STEPS - 1), (MUSIC, 40)):
        assert not due(sound, (NOISE, 100))


def test_what_the_agent_has_answered_is_owed_nothing():
    assert not due((VOICE, 10), (NOISE, 100), agent=range(20, 30))


def test_an_agent_that_spoke_on_after_the_user_has_answered():
    heard = (NOISE, 10), (VOICE, 10), (NOISE, 100)
    assert not due(*heard, agent=range(5, 20 + ANSWERED_STEPS))


def test_who_spoke_on_after_the_agent_is_answered():
    heard = (NOISE, 10), (VOICE, 10), (NOISE, 100)
    assert due(*heard, agent=range(5, 22)) == [19 + PATIENCE_STEPS]


def test_who_speaks_on_as_the_agent_gives_way_is_answered():
    assert due((VOICE, 15), (NOISE, 100), agent=range(10)) == [14 + PATIENCE_STEPS]


def test_who_is_answered_may_wait_again():
    heard = (VOICE, 10), (NOISE, 20), (NOISE, 10), (VOICE, 10), (NOISE, 50)
    assert len(due(*heard, agent=range(30, 40))) == 2
