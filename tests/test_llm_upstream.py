"""Any LLM upstream gives the words; the duplex model keeps the floor."""

import asyncio
import math

import pytest
from pipecat.frames.frames import (
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMUpdateSettingsFrame,
    TranscriptionFrame,
)

from pipecat_duplex import DuplexLLMService, MonologueTextFrame
from pipecat_duplex.conversation.turns import TurnSettings
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.service.frames import UserBackchannelFrame
from tests.llm_pipeline import Reply, talk, user_audio
from tests.voices import ToneTTS


def backend(**script) -> ScriptedBackend:
    script.setdefault("replies", ["my own words"])
    return ScriptedBackend(Script(step_secs=0, **script))


def settings(**changes) -> DuplexLLMService.Settings:
    return DuplexLLMService.Settings(words="given", **changes)


async def test_the_llm_gives_the_words_and_the_model_the_end_of_the_turn() -> None:
    result = await talk(
        backend(opening="hello from me"),
        user_audio((1.0, False), (1.0, True), (4.0, False)),
        transcripts=[("what is two plus two", 3)],
        replies=[Reply([(4, "two plus "), (2, "two is"), (2, " four.")])],
    )
    assert result.messages() == [
        ("user", "what is two plus two"),
        ("assistant", "two plus two is four."),
    ]
    assert [text for text, *_ in result.of("on_user_transcript")] == ["what is two plus two"]
    assert result.service.words == "given"
    assert len(result.llm.contexts) == 1


async def test_words_begin_with_the_first_and_a_stall_is_a_pause() -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (6.0, False)),
        transcripts=[("what is two plus two", 1)],
        replies=[Reply([(1, "two plus two "), (25, "is"), (1, " four")])],
    )
    assert result.messages()[1:] == [("assistant", "two plus two is four")]
    stops = result.of("on_agent_stopped")
    assert len(stops) == 2  # It fell silent in between, and went on.


async def test_a_yield_cancels_the_llm_and_cuts_the_context_at_the_word() -> None:
    words = " ".join(f"w{number}" for number in range(30))
    result = await talk(
        backend(yield_steps=3),
        user_audio((1.0, False), (1.0, True), (2.2, False), (1.2, True), (4.0, False)),
        transcripts=[("tell me a story", 1), ("stop now", 3)],
        replies=[
            Reply([(1, f"{word} ") for word in words.split()] + [(50, "never")]),
            Reply([(1, "okay")]),
        ],
    )
    roles = [role for role, _ in result.messages()]
    assert roles == ["user", "assistant", "user", "assistant"]
    told, stop, okay = (text for _, text in result.messages()[1:])
    assert words.startswith(told) and 3 <= len(told.split()) < 20
    assert (stop, okay) == ("stop now", "okay")
    assert len(result.of("on_yield")) == 1
    assert "never" not in str(result.context.get_messages())


@pytest.mark.parametrize(
    ("longest_secs", "onset_secs"),
    [(1.0, 2.5), (1.0, 2.58), (1.0, 2.66), (1.0, 2.74), (math.inf, 2.5)],
)
async def test_who_speaks_over_given_words_for_long_gets_the_floor(
    longest_secs, onset_secs
) -> None:
    """The model never yields by itself here, and is cut off anywhere in a word."""
    words = " ".join(f"w{number}" for number in range(40))
    result = await talk(
        backend(yield_steps=None),
        user_audio((1.0, False), (1.0, True), (onset_secs, False), (3.0, True), (8.0, False)),
        transcripts=[("tell me a story", 1), ("please stop now", 3)],
        replies=[Reply([(1, words)]), Reply([(1, "okay")])],
        turns=TurnSettings(longest_overlap_secs=longest_secs),
    )
    if longest_secs == math.inf:
        assert ("assistant", words) in result.messages() and not result.of("on_yield")
        return
    (told,) = [text for role, text in result.messages()[1:2]]
    assert words.startswith(told) and 5 < len(told.split()) < 30
    assert result.messages()[2:] == [("user", "please stop now"), ("assistant", "okay")]
    ((event, _),) = result.of("on_yield")
    assert 1.0 <= event.delay_secs <= 1.4
    ((said,), _) = result.of("on_said")
    assert (said.spoken, f"{said.spoken} {said.unspoken}") == (told, words)
    words_in = [frame for frame in result.near.of(MonologueTextFrame) if "▁w" in frame.text]
    assert words_in[-1].step_index < event.step_index


async def test_a_backchannel_is_no_message_and_the_answer_goes_on() -> None:
    words = " ".join(f"w{number}" for number in range(20))
    result = await talk(
        backend(yield_steps=None),
        user_audio((1.0, False), (1.0, True), (2.5, False), (0.5, True), (6.0, False)),
        transcripts=[("tell me a story", 1), ("uh huh", 8)],
        replies=[Reply([(1, words)])],
    )
    assert result.messages() == [("user", "tell me a story"), ("assistant", words)]
    kinds = [(text, kind) for text, _, _, kind in result.of("on_user_transcript")]
    assert kinds == [("tell me a story", "turn"), ("uh huh", "backchannel")]
    assert [frame.text for frame in result.near.of(UserBackchannelFrame)] == ["uh huh"]
    assert len(result.llm.contexts) == 1


@pytest.mark.parametrize(
    "delay_steps", [1, 60, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 30))]
)
async def test_a_transcript_is_answered_however_late_it_comes(delay_steps) -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (9.0, False)),
        transcripts=[("where is it", delay_steps)],
        replies=[Reply([(1, "over there")])],
    )
    assert result.messages() == [("user", "where is it"), ("assistant", "over there")]
    ((_, start_secs, end_secs, _),) = result.of("on_user_transcript")
    assert (start_secs, end_secs) == (pytest.approx(1.0, abs=0.2), pytest.approx(2.0, abs=0.3))


@pytest.mark.parametrize(
    "delay_steps", [2, 30, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 55))]
)
async def test_own_answers_stand_behind_the_question_however_late_it_is_known(delay_steps) -> None:
    result = await talk(
        backend(replies=["it is five", "you are welcome"]),
        user_audio((1.0, False), (1.0, True), (5.0, False), (0.6, True), (5.0, False)),
        transcripts=[("what is two plus three", delay_steps), ("thank you", delay_steps)],
        replies=[],
        own=True,
    )
    assert result.messages() == [
        ("user", "what is two plus three"),
        ("assistant", "it is five"),
        ("user", "thank you"),
        ("assistant", "you are welcome"),
    ]


async def test_a_tool_is_called_and_its_result_is_said_after_a_filler() -> None:
    async def look_up(params):
        await asyncio.sleep(0)
        await clock_wait(params.llm, 30)
        await params.result_callback({"order": "ready"})

    async def clock_wait(llm, steps):
        await llm._clock.wait(steps)

    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (8.0, False)),
        transcripts=[("where is my order", 1)],
        replies=[Reply(calls="look_up"), Reply([(1, "it is ready")])],
        prepare=lambda made: made.llm.register_function("look_up", look_up),
        settings=DuplexLLMService.Settings(
            words="given", filler=["let me see"], filler_after_ms=400
        ),
    )
    assert result.messages()[-1] == ("assistant", "let me see it is ready")
    tool = [message for message in result.context.get_messages() if message["role"] == "tool"]
    assert "ready" in tool[0]["content"]
    assert len(result.llm.contexts) == 2


@pytest.mark.slow
async def test_no_filler_where_the_answer_is_there() -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (5.0, False)),
        transcripts=[("where is my order", 1)],
        replies=[Reply([(1, "it is ready")])],
        settings=settings(filler="let me see", filler_after_ms=400),
    )
    assert result.messages()[1:] == [("assistant", "it is ready")]


async def test_an_answer_that_the_user_has_moved_on_from_is_dropped_and_told() -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (1.0, False), (1.0, True), (6.0, False)),
        transcripts=[("where is my order", 1), ("no wait how late is it", 3)],
        replies=[Reply([(14, "stale words "), (60, "more")]), Reply([(1, "it is ten")])],
    )
    assert result.messages() == [
        ("user", "where is my order"),
        ("user", "no wait how late is it"),
        ("assistant", "it is ten"),
    ]
    assert result.llm.cancelled == 1
    assert "stale words" in [said.unspoken for (said,) in result.of("on_said")]


@pytest.mark.slow
async def test_a_cough_while_the_llm_thinks_loses_no_answer() -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (0.8, False), (0.3, True), (8.0, False)),
        transcripts=[("where is my order", 1), (None, 0)],
        replies=[Reply([(14, "it is "), (1, "ready")])],
    )
    assert result.messages() == [("user", "where is my order"), ("assistant", "it is ready")]


async def test_words_that_the_model_lacks_are_left_out_and_named() -> None:
    result = await talk(
        backend(unsayable={"kubernetes"}),
        user_audio((1.0, False), (1.0, True), (4.0, False)),
        transcripts=[("where is it", 1)],
        replies=[Reply([(1, "Kubernetes is there")])],
    )
    assert result.messages()[1:] == [("assistant", "is there")]
    ((said,),) = result.of("on_said")
    assert said.unsayable == ("Kubernetes",)


@pytest.mark.slow
async def test_with_both_the_models_small_talk_goes_on() -> None:
    result = await talk(
        backend(replies=["okay"]),
        user_audio((1.0, False), (1.0, True), (7.0, False)),
        transcripts=[("where is it", 1)],
        replies=[Reply([(20, "over there")])],
        settings=DuplexLLMService.Settings(words="both"),
    )
    assert result.messages() == [
        ("user", "where is it"),
        ("assistant", "okay"),
        ("assistant", "over there"),
    ]


async def test_who_gives_the_words_changes_in_mid_call() -> None:
    async def to_own(result):
        delta = DuplexLLMService.Settings(words="own")
        await result.service.queue_frame(
            LLMUpdateSettingsFrame(delta=delta, service=result.service)
        )

    result = await talk(
        backend(replies=["my own words"]),
        user_audio((1.0, False), (1.0, True), (3.0, False), (1.0, True), (4.0, False)),
        transcripts=[("where is it", 1), ("and now", 1)],
        replies=[Reply([(1, "over there")]), Reply([(1, "unheard")])],
        at_secs={4.5: to_own},
    )
    assert ("assistant", "over there") in result.messages()
    assert ("assistant", "my own words") in result.messages()
    assert "unheard" not in str(result.messages())


async def test_own_words_can_be_held_for_a_while() -> None:
    async def hold(result):
        await result.service.hold(3.0)

    result = await talk(
        backend(replies=["one", "two"]),
        user_audio((1.0, False), (1.0, True), (3.0, False), (1.0, True), (3.0, False)),
        transcripts=[("first", 1), ("second", 1)],
        replies=[],
        at_secs={0.5: hold},
        own=True,
    )
    assert [text for role, text in result.messages() if role == "assistant"] == ["two"]


@pytest.mark.slow
async def test_typed_text_reaches_the_llm() -> None:
    async def type_text(result):
        message = {"role": "user", "content": "typed"}
        frame = LLMMessagesAppendFrame([message], run_llm=True)
        await result.worker.queue_frame(frame)

    result = await talk(
        backend(),
        user_audio((5.0, False)),
        transcripts=[],
        replies=[Reply([(1, "read it")])],
        at_secs={1.0: type_text},
    )
    assert result.messages() == [("user", "typed"), ("assistant", "read it")]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(
            lambda: LLMMessagesAppendFrame([{"role": "user", "content": "stop"}], run_llm=True),
            id="typed",
        ),
        pytest.param(lambda: TranscriptionFrame("stop", "user", "now"), id="keyed"),
    ],
)
async def test_what_is_typed_or_keyed_in_cuts_the_agent_off(said) -> None:
    """RTVI's ``send-text`` and Pipecat's ``DTMFAggregator`` interrupt first."""

    async def interrupt(result):
        await result.worker.queue_frame(InterruptionFrame())

    async def give(result):
        await result.worker.queue_frame(said())

    words = " ".join(f"w{number}" for number in range(30))
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (7.0, False)),
        transcripts=[("tell me a story", 1)],
        replies=[Reply([(1, words)]), Reply([(1, "okay")])],
        at_secs={4.5: interrupt, 4.7: give},
    )
    told = result.messages()[1][1]
    assert words.startswith(told) and 3 <= len(told.split()) < 20
    assert result.messages() == [
        ("user", "tell me a story"),
        ("assistant", told),
        ("user", "stop"),
        ("assistant", "okay"),
    ]
    assert len(result.llm.contexts) == 2


@pytest.mark.slow
async def test_a_flow_says_and_asks() -> None:
    from pipecat.flows import FlowManager

    node = {
        "name": "greeting",
        "role_message": "You answer a telephone.",
        "task_messages": [{"role": "developer", "content": "Greet."}],
        "functions": [],
        "pre_actions": [{"type": "tts_say", "text": "one moment"}],
    }

    async def begin(result):
        flow = FlowManager(worker=result.worker, llm=result.llm, context_aggregator=result.pair)
        result.events.append(("task", asyncio.create_task(flow.initialize(node))))

    result = await talk(
        backend(),
        user_audio((6.0, False)),
        transcripts=[],
        replies=[Reply([(1, "hello there")])],
        at_secs={1.0: begin},
    )
    said = " ".join(text for role, text in result.messages() if role == "assistant")
    assert said == "one moment hello there"


HALVES = ((0.5, False), (0.8, True), (0.4, False), (0.8, True))


@pytest.mark.parametrize(
    ("voice", "transcripts", "reply_steps"),
    [
        pytest.param(((1.0, False), (1.0, True)), [("where is it", 20)], 20, id="late words"),
        pytest.param(((1.0, False), (1.0, True)), [("where is it", 8)], 20, id="words within it"),
        pytest.param(HALVES, [("where", 10), ("is it", 15)], 20, id="words in halves"),
        pytest.param(
            ((1.0, False), (1.0, True)), [("where is it", 60)], 1, id="words after the wait"
        ),
    ],
)
@pytest.mark.parametrize("voice_of_agent", ["own", "tts"])
async def test_a_filler_bridges_the_wait_for_words_and_stands_behind_them(
    voice, transcripts, reply_steps, voice_of_agent
) -> None:
    result = await talk(
        backend(),
        user_audio(*voice, (9.0, False)),
        transcripts=transcripts,
        replies=[Reply([(reply_steps, "over there.")])],
        settings=settings(filler="well.", filler_after_ms=400),
        tts=ToneTTS() if voice_of_agent == "tts" else None,
    )
    roles = [role for role, _ in result.messages()]
    assert roles == sorted(roles, reverse=True), result.messages()
    texts = [" ".join(text for r, text in result.messages() if r == role) for role in set(roles)]
    assert set(texts) == {"where is it", "well. over there."}
    assert len(result.llm.contexts) == 1
    _, _, end_secs, _ = result.of("on_user_transcript")[-1]
    assert result.of("on_agent_started")[0][0].time_secs - end_secs < 0.9


@pytest.mark.parametrize(
    ("voice", "transcripts"),
    [
        pytest.param(((1.0, False), (0.3, True), (4.0, False)), [(None, 0)], id="a cough"),
        pytest.param(
            ((1.0, False), (0.8, True), (0.5, False), (2.0, True), (0.4, False)),
            [("where", 30), ("is it", 30)],
            id="a user who goes on",
        ),
    ],
)
async def test_no_filler(voice, transcripts) -> None:
    result = await talk(
        backend(),
        user_audio(*voice),
        transcripts=transcripts,
        replies=[],
        settings=settings(filler="well", filler_after_ms=400),
    )
    assert not result.of("on_agent_started")


async def test_after_a_filler_the_user_is_asked_again_if_no_words_come() -> None:
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (6.0, False)),
        transcripts=[(None, 0)],
        replies=[Reply([(1, "what was that")])],
        settings=settings(filler="well", filler_after_ms=400),
    )
    assert " ".join(text for _, text in result.messages()) == "well what was that"
    (context,) = result.llm.contexts
    assert context[-1]["role"] == "developer"


@pytest.mark.parametrize("words", ["given", "both"])
async def test_messages_of_one_turn_are_answered_once_wherever_they_stand(words) -> None:
    """The agent has spoken before the words are known: a filler, or small talk."""
    result = await talk(
        backend(replies=["okay"]),
        user_audio((0.5, False), (0.8, True), (1.6, False), (1.2, True), (8.0, False)),
        transcripts=[("where is it", 45), ("and what is it", 22)],
        replies=[Reply([(3, "over there")])],
        settings=settings(filler=["well", "see"], filler_after_ms=300)
        if words == "given"
        else DuplexLLMService.Settings(words=words),
    )
    (context,) = result.llm.contexts
    assert [text["content"] for text in context if text["role"] == "user"] == [
        "where is it",
        "and what is it",
    ]
    first, second = ("well", "see over there") if words == "given" else ("okay", "okay")
    assert result.messages()[:4] == [
        ("user", "where is it"),
        ("assistant", first),
        ("user", "and what is it"),
        ("assistant", second),
    ]
