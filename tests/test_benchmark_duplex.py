"""The benchmark of conversations: its definitions, and that bad agents get bad figures."""

import asyncio
import itertools
import json
import math
import shutil
from functools import cache

import numpy as np
import pytest

from benchmarks.duplex import report as reports
from benchmarks.duplex.dialogue import Dialogue, Ear, Moment
from benchmarks.duplex.figures import Share, measure, share, summarise, utterances
from benchmarks.duplex.mimed import MimedBackend
from benchmarks.duplex.report import Report, as_json, markdown
from benchmarks.duplex.speech import SEEN, UNSEEN, voices
from benchmarks.duplex.stage import by_the_clock, in_lock_step
from benchmarks.duplex.users import Plan, draw_plans
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES
from training import world
from training.corpus import ESPEAK_ACCENTS, ESPEAK_VARIANTS, FLITE_VOICES

needs_speech = pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("espeak-ng")),
    reason="flite and espeak-ng make the users' speech",
)
SUM = "two plus three is five"
LONG = "one two three four five six seven eight nine ten"


def dialogue(moment: Moment, *said: tuple[float, float, str]) -> Dialogue:
    """A dialogue of one moment: the agent's stretches of sound with their words."""
    pcm, words = np.zeros(20 * SAMPLE_RATE_HZ, np.float32), []
    for start_secs, end_secs, text in said:
        pcm[round(start_secs * SAMPLE_RATE_HZ) : round(end_secs * SAMPLE_RATE_HZ)] = 0.1
        times = np.linspace(start_secs, end_secs, len(text.split()), endpoint=False)
        words += list(zip(times.tolist(), text.split(), strict=True))
    moment.until_secs = moment.until_secs or 15.0
    return Dialogue("flite:awb", UNSEEN, np.zeros_like(pcm), pcm, words, [moment])


def outcome(moment: Moment, *said: tuple[float, float, str], knows_world: bool = True):
    return measure(dialogue(moment, *said), 0, knows_world=knows_world)[0]


def asked(**changes) -> Moment:
    values = {"kind": "ask", "text": "what is two plus three", "text_kind": "sum", "owed": SUM}
    return Moment(**values | {"start_secs": 1.0, "end_secs": 2.5} | changes)


def over_answer(kind: str, owed: str = SUM) -> Moment:
    """Something said over a count to ten that began at second 3."""
    return asked(kind=kind, owed=owed, start_secs=4.0, end_secs=5.0, over=(2.5, LONG))


def test_a_turn_is_taken_after_the_sentence():
    found = outcome(asked(), (2.8, 4.5, SUM))
    assert (found.taken, found.early, found.right) == (True, False, True)
    assert found.delay_secs == pytest.approx(0.3, abs=0.02)


def test_a_wrong_answer_is_wrong():
    assert outcome(asked(), (2.8, 4.5, "two plus three is six")).right is False
    assert outcome(asked(), (2.8, 4.5, SUM), knows_world=False).right is None


def test_silence_and_a_short_sound_are_no_takeover():
    assert outcome(asked()).taken is False
    assert outcome(asked()).right is False
    assert outcome(asked(), (2.8, 3.3, "well")).taken is False
    assert outcome(asked(), (6.0, 8.0, SUM)).taken is False  # three seconds are over


def test_who_spoke_already_and_goes_on_does_not_take_the_turn():
    assert outcome(asked(), (0.2, 9.0, LONG)).taken is False


def test_an_answer_inside_the_sentence_is_early_and_has_no_delay():
    found = outcome(asked(), (2.0, 4.0, SUM))
    assert (found.taken, found.early, found.delay_secs) == (True, True, 0.0)


def test_a_pause_is_waited_through_or_taken():
    moment = asked(kind="pause", end_secs=3.3, pause_secs=(1.8, 2.6))
    waited = outcome(moment, (3.5, 5.0, SUM))
    assert (waited.taken, waited.paused_taken, waited.in_pause) == (True, False, False)
    taken = outcome(moment, (2.2, 4.5, SUM))
    assert (taken.paused_taken, taken.in_pause) == (True, True)
    # A short sound is no takeover, but is told.
    hum = outcome(moment, (2.2, 2.5, "hm"), (3.5, 5.0, SUM))
    assert (hum.paused_taken, hum.in_pause) == (False, True)


@pytest.mark.parametrize(
    ("end_secs", "yields", "delay_secs"),
    [(4.4, True, 0.4), (4.9, False, 0.9), (15.0, False, math.inf)],
)
def test_a_yield_is_in_time_late_or_never(end_secs: float, yields: bool, delay_secs: float):
    found = outcome(over_answer("barge_in"), (3.0, end_secs, LONG))
    assert found.yields is yields
    assert found.yield_secs == pytest.approx(delay_secs, abs=0.02)


def test_a_stop_may_be_answered_at_once():
    moment = over_answer("barge_in", world.STOPPED)
    found = outcome(moment, (3.0, 4.4, "one two three"), (4.55, 4.9, "okay"))
    assert found.yields and found.yield_secs == pytest.approx(0.4, abs=0.02)


def test_an_answer_that_was_not_asked_for_cannot_be_yielded():
    found = outcome(over_answer("barge_in"), (3.0, 4.4, world.UNKNOWN))
    assert found.yields is None


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        ([(3.0, 8.0, LONG)], True),
        ([(3.0, 5.4, LONG)], True),  # to its end
        ([(3.0, 4.5, "one two three four")], False),
        ([(3.0, 4.5, "one two three"), (5.2, 7.0, "sorry i do not know that")], False),
    ],
)
def test_a_backchannel_is_gone_through_or_not(said, goes_on: bool):
    assert outcome(over_answer("backchannel", ""), *said).goes_on is goes_on


@pytest.mark.parametrize(("at_secs", "taken"), [(2.1, True), (0.3, False), (4.0, False)])
def test_the_agent_opens_after_about_two_seconds(at_secs: float, taken: bool):
    moment = asked(kind="opening", text="", owed=world.WELCOME, start_secs=0.0, end_secs=0.0)
    assert outcome(moment, (at_secs, at_secs + 1.5, world.WELCOME)).taken is taken


def test_utterances_end_with_silence():
    pcm = np.zeros(4 * SAMPLE_RATE_HZ, np.float32)
    for start_secs, end_secs in ((0.5, 1.0), (1.2, 1.5), (2.5, 3.0), (3.5, 3.51)):
        pcm[round(start_secs * SAMPLE_RATE_HZ) : round(end_secs * SAMPLE_RATE_HZ)] = 0.1
    spans = [(item.start_secs, item.end_secs) for item in utterances(pcm)]
    assert spans == [pytest.approx((0.5, 1.5)), pytest.approx((2.5, 3.0))]


def test_wilsons_interval():
    low, high = Share(19, 20).interval() or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.764, 0.991)
    assert share([None]).interval() is None
    assert share([True, None, False]) == Share(1, 2)


def test_the_ear_hears_one_sound_after_another_and_words_when_they_come():
    ear = Ear()
    loud = np.full(STEP_SAMPLES, 0.1, np.float32)
    for step, piece in enumerate(("▁good", "bye", None)):
        ear.note_piece(1.0 + step * 0.08, step, piece)
    ear.hear(1.0, loud)
    ear.hear(1.01, loud)  # a burst: it plays after the first
    assert ear.words == [(1.0, "goodbye")]
    assert ear.is_heard(1.3) and not ear.is_heard(1.5)
    ear.flush(1.1)  # an interruption throws away what was not played
    heard = ear.finish(2.0)
    assert np.flatnonzero(heard).tolist() == list(range(SAMPLE_RATE_HZ, round(1.1 * 24_000)))


def test_no_unseen_voice_is_in_the_training():
    trained = {f"flite:{name}" for name in FLITE_VOICES}
    trained |= {f"espeak:{a}+{v}" for a in ESPEAK_ACCENTS for v in ESPEAK_VARIANTS}
    assert not trained & set(voices(UNSEEN))
    assert trained >= set(voices(SEEN, kokoro=False))


@needs_speech
def test_each_voice_gets_its_turns():
    names = voices(UNSEEN, kokoro=False)
    assert len(names) >= 3
    plans = list(draw_plans(names, UNSEEN, 2 * len(names), 1, turns=2))
    assert [plan.voice for plan in plans] == [*names, *names]
    for plan in plans:
        for turn in plan.turns:
            assert turn.line.end_secs > turn.line.start_secs + 0.2
            assert np.abs(turn.line.pcm).max() > 0.01
    # Half of each voice's dialogues begin with silence.
    assert {(plan.voice, plan.opens) for plan in plans} == {(n, o) for n in names for o in (0, 1)}


@cache
def quiet_plans(count: int, turns: int) -> tuple[Plan, ...]:
    """Users in quiet rooms: a scripted agent hears nothing but loudness."""
    plans = draw_plans(("flite:awb", "espeak:en-gb+m6"), UNSEEN, 24, 3, turns=turns)
    quiet = (plan for plan in plans if np.abs(plan.background).max() < 0.01)
    loud = (p for p in quiet if all(np.abs(t.line.pcm).max() > 0.1 for t in p.turns))
    found = tuple(itertools.islice(loud, count))
    assert len(found) == count
    return found


def figures_of(script: Script, *, knows_world: bool, mimed: bool = False):
    """Figures of an agent in six dialogues."""
    plans = quiet_plans(6, 6)
    backend = ScriptedBackend(script, slots=6)
    if mimed:
        backend = MimedBackend(backend)
    seeds = [None] * len(plans)
    dialogues = asyncio.run(in_lock_step(backend, plans, at_once=6, seeds=seeds))
    assert not any(item.failure for item in dialogues)
    outcomes = []
    for index, item in enumerate(dialogues):
        outcomes += measure(item, index, knows_world=knows_world)
    return summarise(outcomes)


@pytest.mark.slow
@needs_speech
def test_an_agent_that_never_talks_fails():
    found = figures_of(Script(step_secs=0), knows_world=True)
    assert found.takeover.of >= 12 and found.takeover.hits == 0
    assert found.right.of >= 6 and found.right.hits == 0
    assert found.opening.hits == 0 and found.yields.of == 0


@pytest.mark.slow
@needs_speech
def test_an_agent_that_always_talks_fails():
    words = " ".join(["word"] * 4000)
    script = Script(opening=words, opening_step=1, yield_steps=None, step_secs=0)
    found = figures_of(script, knows_world=False)
    assert found.takeover.hits == 0 and found.opening.hits == 0
    assert found.pause_takeover.of and found.pause_takeover.value == 1
    assert found.yields.of and found.yields.hits == 0
    assert all(map(math.isinf, found.yield_secs))


@pytest.mark.slow
@needs_speech
def test_another_voice_speaks_and_the_agent_yields_or_does_not():
    script = {"replies": [world.STORY], "reply_steps": 3, "step_secs": 0}
    found = figures_of(Script(yield_steps=3, **script), knows_world=False, mimed=True)
    assert (found.takeover.value or 0) > 0.7
    assert found.yields.of and (found.yields.value or 0) > 0.6
    found = figures_of(Script(yield_steps=None, **script), knows_world=False, mimed=True)
    assert found.yields.of and found.yields.hits == 0


@pytest.mark.slow
@needs_speech
def test_an_agent_that_answers_at_random_is_wrong():
    rng = np.random.default_rng(0)
    replies = [str(text) for text in rng.permutation(world.answers())]
    found = figures_of(Script(replies=replies, step_secs=0), knows_world=True)
    assert found.right.of >= 6 and (found.right.value or 0) < 0.3
    assert (found.takeover.value or 0) > 0.5


@pytest.mark.slow
@needs_speech
def test_an_agent_that_hears_loudness_alone_takes_pauses_and_yields():
    script = Script(replies=[world.STORY], reply_steps=3, yield_steps=3, step_secs=0)
    found = figures_of(script, knows_world=False)
    assert (found.takeover.value or 0) > 0.7
    # It begins in each pause; who yields as the user goes on has not always taken the floor.
    assert (found.pause_sound.value or 0) > 0.9 and found.pause_takeover.hits
    assert found.yields.of and (found.yields.value or 0) > 0.6


@pytest.mark.slow
@needs_speech
async def test_by_the_clock_through_a_pipeline(tmp_path):
    plans = quiet_plans(2, 2)
    backend = ScriptedBackend(Script(replies=[SUM], yield_steps=3), slots=2)
    dialogues = await by_the_clock(backend, plans, at_once=2, seeds=[1, 2])
    report = Report("scripted", "by the clock", 2, 3, knows_world=False)
    for index, item in enumerate(dialogues):
        assert item.failure is None and item.words and item.agent_pcm.any()
        report.outcomes += measure(item, index, knows_world=False)
        report.compute_secs += item.compute_secs
    report.groups[UNSEEN] = summarise(report.outcomes)
    assert report.groups[UNSEEN].takeover.hits
    # An agent of another world has no right answers: the table says so.
    assert "not its world" in markdown(report)
    assert json.loads(as_json(report))["groups"]["unseen"]["takeover"]["interval"]
    pytest.importorskip("matplotlib")
    reports.plot_delays(report, tmp_path / "delays.png")
    first = [item for item in report.outcomes if item.dialogue == 0]
    reports.plot_dialogue(dialogues[0], first, tmp_path / "dialogue.png")
    assert (tmp_path / "dialogue.png").stat().st_size > 10_000


@needs_speech
def test_the_recogniser_tells_speech_from_noise():
    pytest.importorskip("pocketsphinx")
    from benchmarks.duplex.intelligibility import Spoken, intelligibility
    from training.recogniser import sentences
    from training.speech import AGENT_VOICE, synthesise

    rng = np.random.default_rng(0)
    answers = []
    for text in (SUM, "my name is nora", "the library is on the second floor"):
        source = synthesise(text, AGENT_VOICE).samples
        noise = 0.1 * rng.standard_normal(len(source)).astype(np.float32)
        answers.append(Spoken(text, {"agent": noise, "source": source}))
    found = intelligibility(answers, sentences())
    assert found.words == 16
    assert found.rates["source"] < 0.2 < 0.5 < found.rates["agent"]
