"""``converse`` with a scripted agent: a real pipeline, and an agent whose words are known."""

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.commands.converse.converse import ConverseOptions, converse, run_converse
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import (
    STEP_SAMPLES,
    AtCapacity,
    DuplexError,
    SessionConfig,
    SessionEnded,
)
from tests.pipeline import silence, speech
from tests.server.callers import chat_url, serving

RATES_HZ = (8_000, 16_000, 44_100, 48_000)
OPENING_STEP = 5
OPENING = Script(opening="hello there", opening_step=OPENING_STEP, step_secs=0)


def write_user(path: Path, rate_hz: int = 24_000, secs: float = 1.5, channels: int = 1) -> Path:
    """A user who makes one soft click at second 1."""
    pcm = np.zeros((round(secs * rate_hz), channels), np.float32)
    pcm[rate_hz] = 0.5
    soundfile.write(path, pcm, rate_hz)
    return path


def write_speech(path: Path, *parts: np.ndarray) -> Path:
    soundfile.write(path, np.concatenate(parts), 16_000)
    return path


async def agent_of(script: Script, steps: int) -> np.ndarray:
    """What the scripted agent says to a silent user, step by step."""
    session = await ScriptedBackend(script).open(SessionConfig())
    for _ in range(steps):
        session.send(np.zeros(STEP_SAMPLES, np.float32))
    answers = session.steps()
    return np.concatenate([(await anext(answers)).pcm for _ in range(steps)])


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_agent_is_heard_on_the_users_time_line(
    tmp_path: Path, rate_hz: int, suffix: str, channels: int
):
    user = write_user(tmp_path / f"in.{suffix}", rate_hz, channels=channels)
    out = tmp_path / "out.wav"
    options = ConverseOptions(user, out=out, stereo=True, tail_secs=0.51)

    run_converse(options, backend=ScriptedBackend(OPENING))

    pcm16, out_rate_hz = soundfile.read(out, dtype="int16")
    assert out_rate_hz == 24_000
    assert len(pcm16) == 24_000 * 1.5 + 12_240
    user_pcm, agent_pcm = pcm16.T
    assert abs(int(user_pcm.argmax()) - 24_000) <= 1
    said = np.frombuffer(float_to_pcm16(asyncio.run(agent_of(OPENING, 11))), np.int16)
    first = (OPENING_STEP + 1) * STEP_SAMPLES
    length = 6 * STEP_SAMPLES
    np.testing.assert_array_equal(agent_pcm[first : first + length], said[-length:])
    assert not agent_pcm[:first].any()
    assert not agent_pcm[first + length :].any()


def test_without_stereo_the_agent_is_alone(tmp_path: Path):
    options = ConverseOptions(
        write_user(tmp_path / "in.wav"), out=tmp_path / "out.wav", tail_secs=0
    )

    report = run_converse(options, backend=ScriptedBackend(OPENING))

    pcm, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert pcm.shape == (36_000,)
    np.testing.assert_allclose(pcm, report.recording.agent_pcm, atol=1 / 32768)


FIELDS = {
    "session_started": set(),
    "user_started": {"over_agent"},
    "user_stopped": set(),
    "agent_started": {"over_user"},
    "agent_stopped": {"yielded", "text"},
    "monologue": {"text", "token", "step"},
    "word": {"text"},
    "yield": {"delay_secs", "text"},
    "backchannel": {"duration_secs"},
    "error": {"message"},
    "summary": {
        "duration_secs",
        "user_turns",
        "agent_turns",
        "agent_words",
        "yields",
        "backchannels",
        "answer_delays_secs",
        "checkpoint",
        "trained",
        "seed",
    },
}


def read_events(path: Path) -> list[dict]:
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in events:
        assert set(event) == {"time_secs", "event"} | FIELDS[event["event"]], event
    times = [event["time_secs"] for event in events]
    assert times == sorted(times)
    return events


def test_events_of_a_conversation_with_a_yield(tmp_path: Path):
    # The user asks, and then speaks over the answer.
    user = write_speech(
        tmp_path / "in.wav", silence(0.5), speech("question"), silence(1.5), speech("barge_in")
    )
    path = tmp_path / "events.jsonl"
    long_answer = "one two three four five six seven eight nine ten eleven twelve thirteen"
    backend = ScriptedBackend(Script(replies=(long_answer, "sorry"), step_secs=0))

    report = run_converse(ConverseOptions(user, events=path, seed=7), backend=backend)

    events = read_events(path)
    names = [event["event"] for event in events]
    assert names[0] == "session_started"
    assert names[-1] == "summary"
    assert names.count("yield") == 1
    assert names.count("agent_started") == names.count("agent_stopped") == 2
    assert names.count("user_started") == names.count("user_stopped")
    answer, sorry = [event for event in events if event["event"] == "agent_stopped"]
    assert answer["yielded"] and long_answer.startswith(answer["text"])
    assert sorry["text"] == "sorry"
    assert "word" in names and "monologue" in names
    words = [event["text"] for event in events if event["event"] == "word"]
    assert " ".join(words) == f"{answer['text']} sorry"
    assert events[-1]["yields"] == 1
    assert len(events[-1]["answer_delays_secs"]) == 2
    assert min(report.figures.answer_delays_secs) >= 0
    assert events[-1]["seed"] == 7


def test_talking_over_a_stubborn_agent_is_a_backchannel(tmp_path: Path):
    user = write_speech(tmp_path / "in.wav", silence(1.5), speech("barge_in"))
    script = Script(opening=" ".join(["word"] * 40), yield_steps=None, step_secs=0)
    path = tmp_path / "events.jsonl"

    run_converse(ConverseOptions(user, events=path), backend=ScriptedBackend(script))

    names = [event["event"] for event in read_events(path)]
    assert "backchannel" in names
    assert "yield" not in names


def test_the_same_input_gives_the_same_files(tmp_path: Path):
    user = write_speech(tmp_path / "in.wav", silence(0.5), speech("question"))
    script = Script(replies=("that is five",), step_secs=0)
    for name in ("a", "b"):
        options = ConverseOptions(
            user,
            out=tmp_path / f"{name}.wav",
            events=tmp_path / f"{name}.jsonl",
            greedy=True,
            tail_secs=2,
        )
        run_converse(options, backend=ScriptedBackend(script))

    for suffix in ("wav", "jsonl"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_every_step_is_answered(tmp_path: Path):
    # 1.5 s are 18.75 steps: the last one is filled up.
    options = ConverseOptions(write_user(tmp_path / "in.wav"), tail_secs=0)

    report = run_converse(options, backend=ScriptedBackend(OPENING))

    assert len(report.timings) == 19


@pytest.mark.slow
@pytest.mark.engine
async def test_a_seed_gives_the_same_conversation(tmp_path: Path, tiny_checkpoint: Path):
    pytest.importorskip("moshi")
    from pipecat_duplex.engine import Engine

    user = write_user(tmp_path / "in.wav")
    engine = await Engine.load(tiny_checkpoint)
    try:
        first, second, other = [
            (
                await converse(ConverseOptions(user, seed=seed, tail_secs=0), backend=engine)
            ).recording
            for seed in (5, 5, 6)
        ]
    finally:
        await engine.close()

    np.testing.assert_array_equal(first.agent_pcm, second.agent_pcm)
    assert first.events == second.events
    assert (first.agent_pcm != other.agent_pcm).any()


@pytest.mark.slow
def test_in_real_time_both_voices_are_there(tmp_path: Path):
    user = write_user(tmp_path / "in.wav", secs=1.2)
    out = tmp_path / "out.wav"
    options = ConverseOptions(user, out=out, stereo=True, realtime=True, tail_secs=0.4)

    run_converse(options, backend=ScriptedBackend(OPENING))

    pcm, _ = soundfile.read(out, dtype="float32")
    assert pcm.shape == (38_400, 2)
    assert (np.abs(pcm).max(axis=0) > 0.2).all()


def test_what_was_said_before_a_failure_is_kept(tmp_path: Path):
    script = Script(opening="hello there", opening_step=2, fail_step=14, step_secs=0)
    options = ConverseOptions(
        write_user(tmp_path / "in.wav"),
        out=tmp_path / "out.wav",
        events=tmp_path / "events.jsonl",
    )

    with pytest.raises(SessionEnded, match="the script says so"):
        run_converse(options, backend=ScriptedBackend(script))

    pcm, _ = soundfile.read(options.out, dtype="float32")
    assert np.abs(pcm).max() > 0.2
    events = read_events(tmp_path / "events.jsonl")
    (error,) = [event for event in events if event["event"] == "error"]
    assert "the script says so" in error["message"]


@pytest.mark.slow
async def test_a_server_is_talked_with_by_the_clock(tmp_path: Path):
    script = Script(opening="hello there", opening_step=2, step_secs=0)
    async with serving(ScriptedBackend(script), api_keys=("secret",)) as server:
        options = ConverseOptions(
            write_user(tmp_path / "in.wav", secs=1.2),
            out=tmp_path / "out.wav",
            events=tmp_path / "events.jsonl",
            url=chat_url(server) + "?token=hidden",
            api_key="secret",
            tail_secs=0.4,
        )
        report = await asyncio.to_thread(run_converse, options)
        refused = await asyncio.to_thread(converse_with_a_wrong_key, options)
    assert report.elapsed_secs > 1.5
    assert report.recording.select("monologue")
    [summary] = [e for e in read_events(tmp_path / "events.jsonl") if e["event"] == "summary"]
    assert summary["checkpoint"].startswith("127.0.0.1:")
    assert "hidden" not in (tmp_path / "events.jsonl").read_text()
    assert "401" in refused or "key" in refused


def converse_with_a_wrong_key(options: ConverseOptions) -> str:
    with pytest.raises(DuplexError) as refused:
        run_converse(replace(options, api_key="wrong"))
    return str(refused.value)


async def test_a_full_backend_is_told_at_once(tmp_path: Path):
    backend = ScriptedBackend(slots=1)
    await backend.open(SessionConfig())

    report = await converse(ConverseOptions(write_user(tmp_path / "in.wav")), backend=backend)

    assert isinstance(report.failure, AtCapacity)


def test_progress_reaches_the_end(tmp_path: Path):
    seen: list[tuple[float, float]] = []
    options = ConverseOptions(write_user(tmp_path / "in.wav"), tail_secs=0.3)

    asyncio.run(
        converse(
            options,
            backend=ScriptedBackend(OPENING),
            on_progress=lambda done_secs, total_secs, said: seen.append((done_secs, total_secs)),
        )
    )

    assert seen == sorted(seen)
    assert seen[-1] == (pytest.approx(1.8), pytest.approx(1.8))


@pytest.mark.parametrize("option", ["out", "events", "plot"])
def test_places_that_cannot_be_written_are_refused_first(tmp_path: Path, option: str):
    user = write_user(tmp_path / "in.wav")
    for place, message in (
        (tmp_path / "nowhere" / "file", "there is no folder"),
        (tmp_path, "is a folder"),
        (user, "is the recording itself"),
    ):
        with pytest.raises(DuplexError, match=message):
            run_converse(ConverseOptions(user, **{option: place}))


def test_stereo_without_a_file_is_refused(tmp_path: Path):
    with pytest.raises(DuplexError, match="--out"):
        run_converse(ConverseOptions(write_user(tmp_path / "in.wav"), stereo=True))


def test_the_picture_is_a_png_to_look_at(tmp_path: Path):
    pytest.importorskip("matplotlib")
    user = write_speech(
        tmp_path / "in.wav", silence(0.5), speech("question"), silence(1.5), speech("barge_in")
    )
    path = tmp_path / "plot.png"
    script = Script(replies=("$x$ is a word " * 8, "sorry"), step_secs=0)

    run_converse(ConverseOptions(user, plot=path), backend=ScriptedBackend(script))

    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (3200, 1400)
    assert 40_000 < len(png) < 1_500_000


def test_a_picture_of_nothing_can_be_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    user = write_user(tmp_path / "in.wav", secs=1.1)

    run_converse(ConverseOptions(user, plot=path, tail_secs=0), backend=ScriptedBackend())

    assert path.stat().st_size > 0
