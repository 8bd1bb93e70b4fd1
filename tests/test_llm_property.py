"""Whatever the order and the delays: the context is what was heard, and the agent never hangs."""

import random

import pytest
from pipecat.frames.frames import TTSTextFrame

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.service.frames import MonologueTextFrame
from tests.llm_pipeline import Reply, talk, user_audio

TAIL_SECS = 12.0
FILLERS = [f"well{number} well{number}" for number in range(9)]


def spoken_in(secs: float, word: str) -> str:
    return " ".join(f"{word}{at}" for at in range(round(secs / 0.33)))


def check_order(result, told, voices) -> None:
    """Each message stands behind what the agent had begun to say, and before the rest."""
    begun = [started.time_secs for (started,) in result.of("on_agent_started")]
    heard = [
        (frame.text.strip("▁"), frame.time_secs) for frame in result.near.of(MonologueTextFrame)
    ]
    place = {word: at for at, (_, text) in enumerate(told) for word in text.split()}
    for text, told_secs, _, kind in result.of("on_user_transcript"):
        start_secs, end_secs = voices[text]
        if kind != "turn" or abs(told_secs - start_secs) > 0.3:
            continue  # Nobody knows for sure which of two voices a text describes.
        for word, time_secs in heard:
            if word not in place or word == "mine":
                continue
            since_secs = max(each for each in begun if each <= time_secs)
            if since_secs > end_secs + 0.1:
                assert place[word] > place[text.split()[0]], f"{word} is behind {text}: {told}"
            elif time_secs < start_secs:
                assert place[word] < place[text.split()[0]], f"{word} is before {text}: {told}"


def check_runs(contexts) -> None:
    """The LLM is never asked twice for the same."""
    asked = [[m for m in context if m["role"] != "assistant"] for context in contexts]
    for number, each in enumerate(asked):
        assert each not in asked[:number], f"asked twice: {contexts[number]}"


async def hold_any_conversation(seed: int) -> None:
    draw = random.Random(seed)
    parts, transcripts, said, voices = [(0.5, False)], [], [], {}
    for number in range(draw.randint(1, 4)):
        noise = draw.random() < 0.25
        voice_secs = draw.uniform(0.2, 0.35) if noise else draw.uniform(0.6, 1.6)
        start_secs = sum(secs for secs, _ in parts)
        parts += [(voice_secs, True), (draw.uniform(0.5, 4.0), False)]
        delay_steps = draw.choice([0, 1, 5, 12, 25, 55])
        text = None if noise else spoken_in(voice_secs, f"u{number}w")
        transcripts.append((text, delay_steps))
        if text:
            said.append(text)
            voices[text] = (start_secs, start_secs + voice_secs)
    start_secs = sum(secs for secs, _ in parts)
    voices["last words"] = (start_secs, start_secs + 0.8)
    parts += [(0.8, True), (TAIL_SECS, False)]
    transcripts.append(("last words", draw.choice([0, 3, 20, 50])))
    said.append("last words")
    replies = []
    for number in range(12):
        words = [f"r{number}w{at} " for at in range(draw.randint(1, 8))]
        if draw.random() < 0.2:
            replies.append(Reply(calls="look_up"))
        replies.append(Reply([(draw.choice([0, 0, 1, 3, 15]), word) for word in words]))
    tool_steps = draw.choice([0, 10, 30])

    async def look_up(params):
        await params.llm._clock.wait(tool_steps)
        await params.result_callback({"found": "yes"})

    def prepare(made) -> None:
        made.llm.register_function("look_up", look_up, cancel_on_interruption=draw.random() < 0.5)

    script = Script(
        opening="mine mine mine",
        replies=["mine"],
        step_secs=0,
        yield_steps=draw.choice([3, 3, None]),
    )
    words, filler = draw.choice(["given", "given", "both"]), draw.choice([None, FILLERS, FILLERS])
    result = await talk(
        ScriptedBackend(script),
        user_audio(*parts),
        transcripts=transcripts,
        replies=replies,
        prepare=prepare,
        settings=DuplexLLMService.Settings(
            words=words, filler=filler, filler_after_ms=draw.choice([200, 400])
        ),
    )
    messages = result.messages()
    told = [(role, text) for role, text in messages if not text.startswith("{")]
    agent = " ".join(text for role, text in told if role == "assistant").split()
    heard = "".join(
        frame.text if frame.text.startswith(" ") else f" {frame.text}"
        for frame in result.far.of(TTSTextFrame)
        if frame.append_to_context
    ).split()
    assert agent == heard, "the context is what was heard"
    agent = [word for word in agent if words == "given" or word != "mine"]
    assert "mine" not in agent, "own words are held"
    assert all(agent.count(word) <= 1 + (word[:4] == "well") for word in agent), "nothing twice"
    assert len([word for word in agent if word.startswith("well")]) <= 2 * len(voices)

    spoken = " ".join(said.spoken for (said,) in result.of("on_said")).split()
    given = [word for word in agent if word != "mine"]
    assert sorted(spoken) == sorted(given), "what was said is what was heard"

    kinds = [(text, kind) for text, _, _, kind in result.of("on_user_transcript")]
    assert sorted(text for text, _ in kinds) == sorted(said), "each transcript is told once"
    users = " ".join(text for role, text in told if role == "user")
    for text, kind in kinds:
        assert users.count(text) == (kind == "turn"), f"{text} is a {kind}"

    if kinds and dict(kinds)["last words"] == "turn":
        after = told[max(at for at, (_, text) in enumerate(told) if "last words" in text) + 1 :]
        assert [role for role, _ in after].count("assistant"), f"an answer comes: {told}"
    check_order(result, told, voices)
    check_runs(result.llm.contexts)
    assert not result.service._upstream.given.is_writing, "nothing is left over"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_any_order_of_frames(seed) -> None:
    await hold_any_conversation(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [27, *range(100, 112)])
async def test_many_orders_of_frames(seed) -> None:
    await hold_any_conversation(seed)
