"""The benchmark beside a cascade: its definitions, its LLM, and what makes a context wrong."""

import json
import math

import numpy as np
import pytest

from benchmarks.cascade import report as reports
from benchmarks.cascade.contexts import faults, messages_of
from benchmarks.cascade.figures import measure
from benchmarks.cascade.librarian import STORY, answer_to, plain
from benchmarks.cascade.report import Column, Report, make_column, markdown
from benchmarks.cascade.scenes import KINDS, draw_scenes
from benchmarks.cascade.stage import ASKED, DECIDED, INTERRUPTED, WROTE, Call, Note
from benchmarks.cascade.tool_call import (
    CALM,
    FILLER,
    OVER_ANSWER,
    ToolLibrarian,
    lost_or_twice,
    measure_tools,
)
from benchmarks.duplex.dialogue import Dialogue, Moment
from pipecat_duplex.session import SAMPLE_RATE_HZ
from training import world

needs_speech = pytest.mark.needs("flite", "espeak-ng", "soxr")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def agent(text: str) -> dict:
    return {"role": "assistant", "content": text}


def call(
    *moments: Moment,
    said: list[tuple[float, float, str]] = (),
    notes: list[Note] = (),
    messages: list[dict] = (),
    transcripts: list[tuple[str, float, float, str]] = (),
) -> Call:
    """A conversation of 30 s: the agent's stretches of sound with their words, and the rest."""
    pcm, words = np.zeros(30 * SAMPLE_RATE_HZ, np.float32), []
    for start_secs, end_secs, text in said:
        pcm[round(start_secs * SAMPLE_RATE_HZ) : round(end_secs * SAMPLE_RATE_HZ)] = 0.1
        times = np.linspace(start_secs, end_secs, len(text.split()), endpoint=False)
        words += list(zip(times.tolist(), text.split(), strict=True))
    for moment in moments:
        moment.until_secs = moment.until_secs or 20.0
    dialogue = Dialogue("", "unseen", np.zeros_like(pcm), pcm, words, list(moments))
    return Call(dialogue, list(notes), list(messages), list(transcripts), [], chunks=1500)


def asked(kind: str = "ask", **changes) -> Moment:
    values = {"text": "what is two plus three", "text_kind": "sum", "owed": ""}
    return Moment(kind, **values | {"start_secs": 1.0, "end_secs": 2.5} | changes)


def over(kind: str, text: str = "uh huh") -> Moment:
    return asked(kind, text=text, start_secs=4.0, end_secs=4.5, over=(2.5, world.STORY))


#
# the LLM
#


@pytest.mark.parametrize(
    ("heard", "answer"),
    [
        (["What is 2 plus 3?"], "Two plus three is five."),
        (["What is 2 + 3?"], "Two plus three is five."),
        (["How much is five plus,", "Four."], "Five plus four is nine."),
        (["Hm. Where's the kitchen?"], "The kitchen is on the ground floor."),
        (["Tell me a story."], STORY),
        (["The weather is nice over there, I hear."], "Sorry i do not know that."),
    ],
)
def test_the_llm_looks_for_the_nearest_question(heard, answer):
    before = [user("Are you open on Monday?"), agent("yes we are open on monday")]
    assert answer_to([*before, *map(user, heard)]) == answer


def test_the_llm_reads_parts_of_a_message_and_answers_nothing_with_regret():
    parts = [{"type": "text", "text": "count to"}, {"type": "text", "text": "three"}]
    assert answer_to([{"role": "user", "content": parts}]) == "One two three."
    assert answer_to([]).startswith("Sorry")
    assert plain(STORY) == world.STORY


def test_the_llm_looks_stories_up():
    question = user("Tell me a story.")
    wanted = {"call": "look_up", "arguments": {"what": "story"}}
    llm = ToolLibrarian()
    assert llm([question]) == wanted
    result = {"role": "tool", "content": '{"found": "story"}', "tool_call_id": "call-1"}
    assert llm([question, result, agent("thank you")]) == STORY
    later = user("What is four plus five?")
    assert llm([question, result, later]) == "Four plus five is nine."
    late = ToolLibrarian()
    running = result | {"content": "IN_PROGRESS"}
    assert late([question, running, later]) == "Four plus five is nine."
    assert late([question, result, later, agent("four plus")]) == STORY


#
# the figures
#


def test_a_delay_has_its_parts():
    notes = [
        Note(DECIDED, 1.5),  # in a pause, withdrawn
        Note(DECIDED, 2.9),
        Note(ASKED, 3.3),
        Note(WROTE, 3.6, "Two"),
        Note(WROTE, 3.65, " plus"),
    ]
    figures = measure([call(asked(), said=[(4.0, 6.0, "")], notes=notes)])
    (delay,) = figures.delays
    parts = [delay.whole, delay.turn, delay.words, delay.llm, delay.speech]
    assert parts == pytest.approx([1.5, 0.4, 0.4, 0.3, 0.4], abs=0.02)
    assert figures.taken == [True] and figures.early == [False]


def test_an_agent_without_an_llm_has_two_parts():
    figures = measure([call(asked(), said=[(2.8, 6.0, "")], notes=[Note(DECIDED, 2.7)])])
    (delay,) = figures.delays
    assert (delay.words, delay.llm) == (None, None)
    assert [delay.turn, delay.speech] == pytest.approx([0.2, 0.1], abs=0.02)


def test_a_pause_may_be_taken_by_the_llm_and_not_be_heard():
    moment = asked("pause", end_secs=3.5, pause_secs=(1.8, 2.6))
    figures = measure([call(moment, said=[(4.0, 6.0, "")], notes=[Note(ASKED, 2.9)])])
    assert (figures.pause_early, figures.pause_asked) == ([False], [True])
    figures = measure([call(moment, said=[(2.5, 2.8, ""), (4.0, 6.0, "")])])
    assert (figures.pause_early, figures.pause_asked) == ([True], [])
    assert figures.taken == [True] and figures.delays == []


@pytest.mark.parametrize(("ends_secs", "yield_secs"), [(4.4, 0.4), (4.9, 0.9), (29.0, math.inf)])
def test_a_yield_has_a_delay(ends_secs, yield_secs):
    figures = measure([call(over("barge_in"), said=[(3.0, ends_secs, "")])])
    assert figures.yield_secs == pytest.approx([yield_secs], abs=0.02)
    assert figures.yields(0.6).hits == (yield_secs < 0.6)


def test_what_is_no_turn_may_stop_or_start_the_agent():
    hum, cough, knock = over("backchannel"), over("sound_over", "cough"), over("sound_over", "x")
    stopped = measure([call(m, said=[(3.0, 4.6, "")]) for m in (hum, cough, knock)])
    assert stopped.stopped_by == {"backchannel": [True], "cough": [True], "noise": [True]}
    # A breath between two sentences is no end.
    goes_on = measure([call(hum, said=[(3.0, 4.4, ""), (4.8, 9.0, "")])])
    assert goes_on.stopped_by == {"backchannel": [False]}
    sneeze = asked("sound", text="sneeze", until_secs=8.0)
    assert measure([call(sneeze, said=[(5.0, 6.0, "")])]).started_by == {"cough": [True]}


#
# the context
#

QUESTION, ANSWER = "what is two plus three", "two plus three is five"
TURN = (" What is 2 plus 3? ", 1.1, 2.6, "turn")
TOLD = {"said": [(3.0, 5.0, ANSWER)], "transcripts": [TURN]}


def test_a_right_context_has_no_faults():
    messages = [user("What is 2 plus 3?"), agent("Two plus three is five.")]
    assert faults(call(asked(), messages=messages, **TOLD)) == []


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([agent(ANSWER), user("What is 2 plus 3?")], "stands after"),
        ([user("What is 2 plus 3?"), agent(f"{ANSWER} exactly")], 'nobody heard "exactly"'),
        ([user("What is 2 plus 3?"), agent("two plus three")], "what was heard with"),
        ([agent(ANSWER)], "is in no message"),
        ([user("Hello."), user("What is 2 plus 3?"), agent(ANSWER)], "nobody said"),
    ],
)
def test_a_wrong_context_is_described(messages, fault):
    found = faults(call(asked(), messages=messages, **TOLD))
    assert found and fault in found[0]


def test_a_message_may_not_stand_before_what_was_said_earlier():
    later = asked(start_secs=8.0, end_secs=9.0)
    turn = (" What is 2 plus 3? ", 8.1, 9.0, "turn")
    said = [(2.0, 4.0, "hello how can i help you"), (10.0, 12.0, ANSWER)]
    right = [agent("hello how can i help you"), user("What is 2 plus 3?"), agent(ANSWER)]
    assert faults(call(later, said=said, transcripts=[turn], messages=right)) == []
    wrong = [right[1], right[0], right[2]]
    (found,) = faults(call(later, said=said, transcripts=[turn], messages=wrong))
    assert "stands before" in found


def test_words_said_while_the_user_talks_over_them_stand_before():
    moment = asked("barge_in", start_secs=4.0, end_secs=5.0)
    turn = (" Stop. ", 4.1, 5.0, "turn")
    messages = [agent("one two three four"), user("Stop."), agent("okay")]
    said = [(3.0, 4.8, "one two three four"), (5.6, 6.0, "okay")]
    assert faults(call(moment, said=said, transcripts=[turn], messages=messages)) == []


def test_only_the_word_at_a_cut_may_be_missing():
    moment = asked("barge_in", start_secs=4.0, end_secs=5.0)
    turn = (" Stop. ", 4.1, 5.0, "turn")
    messages = [agent("one two three"), user("Stop.")]
    parts = {"said": [(3.0, 5.0, "one two three four")], "transcripts": [turn]}
    held = call(moment, messages=messages, **parts)
    assert 'what was heard with "four"' in faults(held)[0]
    held.notes.append(Note(INTERRUPTED, 4.8))
    assert faults(held) == []


def test_a_word_that_was_cut_leaves_the_order_of_what_follows():
    moment = asked("barge_in", start_secs=4.0, end_secs=5.0)
    turns = [(" Stop. ", 4.1, 5.0, "turn"), (" What is 2 plus 3? ", 8.1, 9.0, "turn")]
    said = [(3.0, 5.0, "one two three four"), (5.6, 6.0, "okay"), (10.0, 12.0, ANSWER)]
    texts = [agent("one two three"), user("Stop."), agent("okay"), user("What is 2 plus 3?")]
    held = call(moment, messages=[*texts, agent(ANSWER)], said=said, transcripts=turns)
    held.notes.append(Note(INTERRUPTED, 4.8))
    assert faults(held) == []
    held.messages[2:4] = reversed(texts[2:])
    assert "stands before" in faults(held)[0]


def test_a_word_needs_a_sound_or_a_mark():
    held = call(asked(), messages=[user(QUESTION), agent("two [not heard: plus] three is five")])
    held.transcripts, held.dialogue.words = [(QUESTION, 1.1, 2.6, "turn")], []
    for index, word in enumerate(ANSWER.split()):
        held.dialogue.words.append((3.0 + index, word))
    held.dialogue.agent_pcm[3 * SAMPLE_RATE_HZ : 8 * SAMPLE_RATE_HZ] = 0.1
    held.dialogue.agent_pcm[4 * SAMPLE_RATE_HZ : 5 * SAMPLE_RATE_HZ] = 0.0
    assert faults(held) == []
    held.messages[1] = agent(ANSWER)
    assert faults(held) == ['"plus" at 4.0 s has no sound']


def test_hums_that_became_messages_are_counted():
    hum = over("backchannel")
    for kind, count in (("turn", 1), ("backchannel", 0)):
        held = call(hum, transcripts=[("Uh-huh.", 4.0, 4.6, kind)])
        assert messages_of(held, "backchannel") == count
        assert messages_of(held, "sound", "sound_over") == 0


#
# the function
#


def test_a_filler_and_a_yield_are_measured_and_nothing_is_lost():
    first = asked("tool", text_kind=OVER_ANSWER, until_secs=8.0)
    second = asked("barge_in", start_secs=8.0, end_secs=9.0)
    said = [(3.1, 3.6, FILLER), (6.5, 8.4, "once there was a small"), (10.0, 12.0, ANSWER)]
    notes = [Note(DECIDED, 2.6), Note(ASKED, 3.0), Note(ASKED, 6.0), Note(WROTE, 6.2, STORY)]
    notes += [Note(ASKED, 9.2), Note(WROTE, 9.5, "Two plus three is five.")]
    found = measure_tools([call(first, second, said=said, notes=notes)])
    assert found.filler_secs == pytest.approx([0.5], abs=0.02)
    assert found.filler_word_secs == pytest.approx([0.6], abs=0.02)
    assert found.yield_secs == pytest.approx([0.4], abs=0.02)


def test_what_is_lost_or_said_twice_is_told():
    moment = asked("tool", text_kind=CALM)
    notes = [Note(ASKED, 3.0), Note(WROTE, 3.5, "Two plus three"), Note(WROTE, 3.6, " is five.")]
    assert lost_or_twice(call(moment, said=[(4.0, 6.0, ANSWER)], notes=notes)) == []
    (lost,) = lost_or_twice(call(moment, said=[(4.0, 5.0, "two plus three")], notes=notes))
    assert "was not said" in lost
    twice = [(4.0, 6.0, ANSWER), (8.0, 10.0, ANSWER)]
    (found,) = lost_or_twice(call(moment, said=twice, notes=notes))
    assert "was said 2 times" in found
    assert "calm: " in measure_tools([call(moment, notes=notes)]).faults[0]


#
# the users and the tables
#


@pytest.mark.slow
@needs_speech
def test_users_do_everything_once(tmp_path):
    first, second = draw_scenes(2, 5, kokoro=False, cache=tmp_path)
    assert {first.group, second.group} == {"unseen", "seen"}
    for plan in (first, second):
        assert len(plan.turns) == len(KINDS)
        sounds = [turn for turn in plan.turns if turn.kind.startswith("sound")]
        assert len(sounds) == 4
        assert all(turn.over.answer for turn in plan.turns if turn.kind == "barge_in")
    (again, _) = draw_scenes(2, 5, kokoro=False, cache=tmp_path)
    assert [turn.kind for turn in again.turns] == [turn.kind for turn in first.turns]


def test_the_tables_hold_what_was_measured(tmp_path):
    held = call(asked(), messages=[agent(ANSWER), user(QUESTION)], **TOLD)
    report = Report(1, 1, 7)
    report.columns["given"] = make_column([held], checks_contexts=True)
    report.columns["own"] = Column(measure([call(asked())]), chunks=10, late_chunks=1)
    report.tools = measure_tools([])
    table = markdown(report)
    assert "| answers a question within 5 s | 1.00 of 1 | 0.00 of 1 |" in table
    assert "| contexts that are wrong | 1 of 1 | – |" in table
    assert "a context is wrong" in table and "stops at a cough" not in table
    assert set(reports.short_markdown(report).splitlines()) < set(table.splitlines())
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows and json.loads(reports.as_json(report))["columns"]["given"]["chunks"] == 1500
    pytest.importorskip("matplotlib")
    reports.plot(report, tmp_path / "cascade.png")
    assert (tmp_path / "cascade.png").stat().st_size > 10_000
