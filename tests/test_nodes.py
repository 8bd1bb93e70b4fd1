"""The nodes in examples/nodes do what they say, in real pipelines around the scripted agent."""

import asyncio
import json
import math
import re
import threading
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pipecat.frames.frames import (
    ClientConnectedFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.tests.utils import run_test
from pipecat.workers.runner import WorkerRunner

from examples.nodes.handoff import HandOff
from examples.nodes.moderation_gate import ModerationGate
from examples.nodes.recorder import AGENT, USER, StereoRecorder, StereoWav
from examples.nodes.transcript_writer import Speech, TranscriptWriter, Word, webvtt
from pipecat_duplex import DuplexLLMService, MonologueTextFrame, UnheardTextFrame
from pipecat_duplex.conversation.clock import ClockSettings
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import WORD_STEPS, Script, ScriptedBackend
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS
from tests.llm_pipeline import Reply, talk, user_audio
from tests.pipeline import CHUNK_SECS, Speaker, Tap, noter, settle, silence, speech
from tests.stalls import by_the_clock

STORY = "once there was a small cat who wanted to see the sea she walked for three days"


class Witness(ScriptedBackend):
    """A scripted backend that notes what its model hears and says."""

    def __init__(self, script: Script):
        super().__init__(script)
        self.heard: list[np.ndarray] = []
        self.said: list[np.ndarray] = []

    async def open(self, config):
        session = await super().open(config)
        send, steps = session.send, session.steps

        def noting_send(pcm):
            self.heard.append(pcm.copy())
            return send(pcm)

        async def noting_steps():
            async for step in steps():
                self.said.append(step.pcm)
                yield step

        session.send, session.steps = noting_send, noting_steps
        return session


@dataclass
class Call:
    """What came of a call: what passed before and behind the nodes, what was played and written."""

    service: DuplexLLMService
    before: Tap
    behind: Tap
    speaker: Speaker
    context: LLMContext

    def errors(self) -> list[str]:
        return [frame.error for frame in self.before.of(ErrorFrame)]

    def words(self) -> str:
        return "".join(frame.text for frame in self.behind.of(TTSTextFrame))


async def hold_call(
    script: Script | Witness,
    audio: np.ndarray,
    nodes: Callable[[DuplexLLMService, dict], Sequence[FrameProcessor]],
    *,
    rate_hz: int = 16_000,
    out_rate_hz: int | None = None,
    realtime: bool = False,
    gap_secs: tuple[float, float] = (0, 0),
    inject: dict[float, Callable[[], Frame]] | None = None,
    cancel: bool = False,
    pause_secs: float | None = None,
) -> Call:
    """Hold a call with nodes right behind the service.

    Args:
        script: What the agent does.
        audio: The user's, float32 mono.
        nodes: Makes the nodes, given the service and its time arguments.
        rate_hz: Rate of the user's audio.
        out_rate_hz: The pipeline's output rate; the input's by default.
        realtime: Whether to go by the wall clock. Otherwise time is the user's audio.
        gap_secs: No packet is sent between these seconds.
        inject: Frames to queue once the user's audio has come to these seconds.
        cancel: Cancel the pipeline after the user's audio, instead of ending it.
        pause_secs: Wait here until a second session has begun.
    """
    fed_secs = 0.0
    timing = {}
    if not realtime:
        timing = {"clock": ClockSettings(patience_secs=math.inf), "now_secs": lambda: fed_secs}
    backend = script if isinstance(script, Witness) else ScriptedBackend(script)
    service = DuplexLLMService(backend=backend, **timing)
    second_session = asyncio.Event()
    sessions: list[str] = []

    async def on_session_started(_service, session_id):
        sessions.append(session_id)
        if len(sessions) == 2:
            second_session.set()

    service.add_event_handler("on_session_started", on_session_started)
    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(context)
    call = Call(service, Tap(), Tap(), Speaker(realtime=realtime), context)
    worker = PipelineWorker(
        Pipeline(
            [
                user,
                service,
                call.before,
                *nodes(service, timing),
                call.behind,
                call.speaker,
                assistant,
            ]
        ),
        params=PipelineParams(
            audio_in_sample_rate=rate_hz, audio_out_sample_rate=out_rate_hz or rate_hz
        ),
        idle_timeout_secs=None,
    )
    inject = dict(inject or {})

    async def feed():
        nonlocal fed_secs
        session_start_secs = 0.0
        await call.behind.started.wait()
        begun_secs = time.monotonic()
        chunk = round(rate_hz * CHUNK_SECS)
        for first in range(0, len(audio) - chunk + 1, chunk):
            fed_secs = (first + chunk) / rate_hz
            for at_secs in [at for at in inject if at <= fed_secs]:
                await worker.queue_frame(inject.pop(at_secs)())
            if realtime:
                await asyncio.sleep(max(0.0, begun_secs + fed_secs - time.monotonic()))
            if gap_secs[0] <= fed_secs < gap_secs[1]:
                continue
            pcm16 = float_to_pcm16(audio[first : first + chunk])
            await worker.queue_frame(InputAudioRawFrame(pcm16, rate_hz, 1))
            if fed_secs == pause_secs:
                await asyncio.wait_for(second_session.wait(), 10)
                session_start_secs = fed_secs
            elif not realtime:
                await settle(service, fed_secs - session_start_secs)
        if cancel:
            await worker.cancel()
        else:
            await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())
    return call


def utterance(*pieces: str) -> list[Frame]:
    """Return the frames of an utterance whose steps hold one piece each."""
    frames: list[Frame] = [LLMFullResponseStartFrame(), TTSStartedFrame()]
    for index, piece in enumerate(pieces):
        frames.append(MonologueTextFrame(piece, 10, index, (index + 1) * STEP_SECS))
        audio = TTSAudioRawFrame(b"\x10\x20" * 1280, 16_000, 1)
        audio.pts = round((index + 1) * STEP_SECS * 1e9)
        frames.append(audio)
    return [*frames, TTSStoppedFrame(), LLMFullResponseEndFrame()]


#
# moderation gate
#


async def muted_at(phrases: list[str], *pieces: str) -> int | None:
    """Return the step from which on the gate mutes these pieces."""
    gate = ModerationGate(phrases)
    muted: list[tuple] = []
    gate.add_event_handler("on_muted", noter(muted, "on_muted"))
    down, _ = await run_test(gate, frames_to_send=utterance(*pieces))
    heard = sum(isinstance(frame, TTSAudioRawFrame) for frame in down)
    read = sum(isinstance(frame, MonologueTextFrame) for frame in down)
    assert heard == read == (muted[0][1].step_index if muted else len(pieces))
    assert len(muted) <= 1
    return muted[0][1].step_index if muted else None


@pytest.mark.parametrize(
    ("pieces", "step"),
    [
        (("▁the", "▁secret", "▁code"), 2),
        (("▁the", "▁SEC", "ret", ",", "▁Co", "de", "▁is"), 5),
        (("▁the", "▁secret", "▁codes"), 2),
        (("▁unsecret", "▁code"), None),
        (("▁secret", "▁word", "▁code"), None),
        (("▁caf", "<0xC3>", "<0xA9>", "▁now"), 2),
        (("▁cafe", "▁now"), None),
    ],
)
async def test_gate_finds_phrases_across_pieces(pieces, step):
    assert await muted_at(["Secret code", "café"], *pieces) == step


@pytest.mark.parametrize(
    ("phrase", "pieces", "step"),
    [
        ("密码", ("▁我", "的", "密", "码", "是"), 3),
        ("密码", ("▁我", "的", "密", "的", "码"), None),
        ("暗証番号", ("あなた", "の", "暗", "証", "番号", "は"), 4),
        ("秘密 代码", ("▁秘密", "▁代", "码"), 2),
        ("รหัสลับ", ("▁นี่คือ", "รหัส", "ลับ"), 2),
        ("code", ("▁我的", "code"), 1),
        ("code", ("▁我的", "de", "code"), None),
        ("비밀 코드", ("▁비밀", "▁코드"), 1),
        ("밀", ("▁비밀",), None),
    ],
)
async def test_gate_finds_phrases_of_any_script(phrase, pieces, step):
    assert await muted_at([phrase], *pieces) == step


@pytest.mark.slow
async def test_gate_mutes_to_the_end_of_the_utterance_only():
    gates = []

    def nodes(_service, _timing):
        gates.append(ModerationGate(["secret code"]))
        gates[0].add_event_handler("on_muted", noter(events, "on_muted"))
        return gates

    events: list[tuple] = []
    script = Script(
        opening="here is the Secret Code one two", replies=["all clear"], yield_steps=None
    )
    audio = np.concatenate([silence(3.5), speech("question"), silence(3)])
    call = await hold_call(script, audio, nodes)
    [(_, muted)] = events
    assert muted.phrase == "secret code"
    assert muted.step_index == script.opening_step + 4 * WORD_STEPS
    assert muted.time_secs == pytest.approx((muted.step_index + 1) * STEP_SECS)
    # Not a sample of the phrase's last word, nor of what follows, until the agent begins anew.
    pts_secs = call.behind.audio_pts_secs()
    reply_secs = next(t for t in pts_secs if t >= muted.time_secs)
    assert max(t for t in pts_secs if t < reply_secs) == pytest.approx(muted.time_secs - STEP_SECS)
    assert reply_secs > 3.5 + 1
    assert len(call.before.of(TTSAudioRawFrame)) > len(pts_secs)
    assert call.words().lower() == "here is the secretall clear"
    brackets = (
        LLMFullResponseStartFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
        LLMFullResponseEndFrame,
    )
    assert [type(frame) for frame in call.behind.of(*brackets)] == [*brackets, *brackets]
    assert not any("Code" in message["content"] for message in call.context.messages)


@pytest.mark.parametrize("node", [ModerationGate, lambda phrases: HandOff(phrases, print)])
@pytest.mark.parametrize("phrases", ["secret", ["fine", "  "], ["..."]])
def test_phrases_without_words_are_refused(node, phrases):
    with pytest.raises(ValueError, match="phrase"):
        node(phrases)


#
# hand-off
#


async def test_handoff_starts_once_a_match_and_blocks_nothing():
    started: list[str] = []
    never = asyncio.Event()

    async def transfer(phrase: str):
        started.append(phrase)
        await never.wait()

    script = Script(opening="well I will Transfer you, now transferring", yield_steps=None)
    call = await hold_call(
        script,
        silence(4),
        lambda *_: [HandOff(["i will transfer you", "transfer"], transfer)],
    )
    assert started == ["transfer", "i will transfer you"]
    assert call.words() == "well I will Transfer you, now transferring"
    assert not call.errors()


@pytest.mark.parametrize(
    ("phrase", "words", "matches"),
    [
        ("转接", ("我", "帮您转接给同事"), 1),
        ("转接", ("转", "接", "再转接"), 2),
        ("transfer me", ("please", " transfer", " me"), 1),
        ("transfer me", (" transfer", UnheardTextFrame(" [not heard: x]", "sentence"), " me"), 0),
        ("not heard", (UnheardTextFrame(" [not heard: x]", "sentence"),), 0),
    ],
)
async def test_handoff_hears_what_was_heard_in_any_script(phrase, words, matches):
    started = []

    async def function(said):
        started.append(said)

    frames = [TTSTextFrame(w, "word") if isinstance(w, str) else w for w in words]
    await run_test(HandOff([phrase], function), frames_to_send=frames)
    assert len(started) == matches


@pytest.mark.slow
async def test_handoff_phrase_lies_in_one_utterance():
    started: list[str] = []

    async def transfer(phrase: str):
        started.append(phrase)

    script = Script(opening="i can transfer", replies=["me too", "transfer me"])
    question = speech("question")
    audio = np.concatenate([silence(2.5), question, silence(2), question, silence(2)])
    call = await hold_call(script, audio, lambda *_: [HandOff(["transfer me"], transfer)])
    assert call.words() == "i can transferme tootransfer me"
    assert started == ["transfer me"]


async def test_handoff_reports_errors_and_goes_on():
    async def transfer(phrase: str):
        raise RuntimeError("no line")

    script = Script(opening="transfer me please transfer me")
    nodes = [HandOff(["transfer me"], transfer)]
    call = await hold_call(script, silence(3), lambda *_: nodes)
    assert call.errors() == ["The hand-off on 'transfer me' failed: no line"] * 2
    assert nodes[0].is_usable
    assert call.words() == "transfer me please transfer me"


#
# recorder
#


def read_wav(path: Path) -> tuple[int, np.ndarray]:
    """Return the rate and the samples, shape ``(n, 2)``, of a file whose header is right."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        assert path.stat().st_size == 44 + 4 * file.getnframes()
        data = file.readframes(file.getnframes())
        return file.getframerate(), np.frombuffer(data, "<i2").reshape(-1, 2)


def pcm16(pcm: np.ndarray) -> np.ndarray:
    return np.frombuffer(float_to_pcm16(pcm), "<i2")


def timeline(frames: list[TTSAudioRawFrame], samples: int) -> np.ndarray:
    """Return the agent's audio, each frame at its place."""
    line = np.zeros(samples, np.int16)
    for frame in frames:
        start = round(frame.pts * frame.sample_rate / 1e9)
        line[start : start + frame.num_frames] = np.frombuffer(frame.audio, "<i2")
    return line


@pytest.mark.slow
@pytest.mark.parametrize("cancel", [False, True], ids=["end", "cancel"])
@pytest.mark.parametrize("rate_hz", [8_000, 24_000])
async def test_recorder_lines_up_to_the_sample(tmp_path, rate_hz, cancel):
    backend = Witness(Script(opening="hello there", replies=[STORY], yield_steps=None))
    user = np.concatenate(
        [silence(2, rate_hz), speech("question", rate_hz), silence(2.01, rate_hz)]
    )
    call = await hold_call(
        backend,
        user,
        lambda s, timing: [StereoRecorder(s, tmp_path / "call.wav", **timing)],
        rate_hz=rate_hz,
        cancel=cancel,
    )
    file_rate_hz, recorded = read_wav(tmp_path / "call.wav")
    assert file_rate_hz == rate_hz
    user = user[: len(user) // round(rate_hz * CHUNK_SECS) * round(rate_hz * CHUNK_SECS)]
    assert np.array_equal(recorded[: len(user), USER], pcm16(user))
    assert not recorded[len(user) :, USER].any()
    agent = timeline(call.behind.of(TTSAudioRawFrame), len(recorded))
    assert agent.any() and np.array_equal(recorded[:, AGENT], agent)
    if rate_hz == 24_000:  # Without resampling: what the model said itself, one step later.
        said = np.concatenate([np.zeros(STEP_SAMPLES, np.float32), *backend.said])
        heard = recorded[:, AGENT] != 0
        assert np.array_equal(recorded[heard, AGENT], pcm16(said)[: len(recorded)][heard])


async def test_recorder_resamples_a_user_of_another_rate(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(32_000) / 16_000).astype(np.float32)
    await hold_call(
        Script(opening="hello"),
        tone,
        lambda s, timing: [StereoRecorder(s, tmp_path / "call.wav", **timing)],
        rate_hz=16_000,
        out_rate_hz=24_000,
    )
    rate_hz, recorded = read_wav(tmp_path / "call.wav")
    assert rate_hz == 24_000
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(len(recorded)) / 24_000)
    middle = slice(2_400, 45_000)
    assert np.abs(recorded[middle, USER] / 32_768 - expected[middle]).max() < 0.001


async def test_recorder_silences_what_an_interruption_cut_off(tmp_path):
    at_secs = 1.24
    call = await hold_call(
        Script(opening=STORY, yield_steps=None),
        silence(3),
        lambda s, timing: [StereoRecorder(s, tmp_path / "call.wav", **timing)],
        inject={at_secs: InterruptionFrame},
    )
    _, recorded = read_wav(tmp_path / "call.wav")
    edge_secs = at_secs - CHUNK_SECS  # The user's audio had come this far.
    [cut_frame_secs] = [t for t in call.behind.audio_pts_secs() if t <= edge_secs < t + STEP_SECS]
    first, last = round(edge_secs * 16_000), round((cut_frame_secs + STEP_SECS) * 16_000)
    assert last - first == 60 * 16
    assert recorded[first - 160 : first, AGENT].all()
    assert not recorded[first:last, AGENT].any()
    assert recorded[last + 160 : last + 320, AGENT].any()


class TwoSessions(Witness):
    """The first session fails, the second does not."""

    async def open(self, config):
        session = await super().open(config)
        self._script = replace(self._script, fail_step=None, opening="again")
        return session


async def test_a_fresh_session_goes_on_where_files_stand(tmp_path):
    backend = TwoSessions(Script(opening="hello there", fail_step=19))
    await hold_call(
        backend,
        silence(5),
        lambda service, timing: [
            StereoRecorder(service, tmp_path / "call.wav", **timing),
            TranscriptWriter(service, tmp_path / "call"),
        ],
        pause_secs=1.6,
    )
    lines = [json.loads(line) for line in (tmp_path / "call.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if line["what"] == "speech")
    assert (first["text"], second["text"]) == ("hello there", "again")
    assert second["start_secs"] > 1.6 > first["end_secs"]
    _, recorded = read_wav(tmp_path / "call.wav")
    for line in (first, second):
        begun, ended = (round(line[key] * 16_000) for key in ("start_secs", "end_secs"))
        sound = np.flatnonzero(np.abs(recorded[begun - 1_600 : ended + 1_600, AGENT]) > 100)
        assert sound[[0, -1]] + begun - 1_600 == pytest.approx([begun, ended], abs=100)


async def test_recorder_reports_a_bad_path_and_the_call_goes_on(tmp_path):
    call = await hold_call(
        Script(opening="hello there"),
        silence(2),
        lambda s, timing: [StereoRecorder(s, tmp_path / "missing" / "call.wav", **timing)],
    )
    [error] = call.errors()
    assert "The recording cannot be written" in error
    assert call.words() == "hello there"


async def test_recorder_leaves_out_audio_that_the_model_refuses(tmp_path):
    odd = lambda: InputAudioRawFrame(b"\x01" * 321, 16_000, 1)  # noqa: E731
    call = await hold_call(
        Script(opening="hello there"),
        silence(2),
        lambda s, timing: [StereoRecorder(s, tmp_path / "call.wav", **timing)],
        inject={0.5: odd},
    )
    assert not call.errors()  # The service reports it, further up.
    assert not read_wav(tmp_path / "call.wav")[1][:, USER].any()


async def test_files_are_written_off_the_event_loop(tmp_path, monkeypatch):
    threads = set()
    put, write_text = StereoWav.put, Path.write_text

    def noting_put(*args):
        threads.add(threading.current_thread())
        put(*args)

    def noting_write_text(*args):
        threads.add(threading.current_thread())
        return write_text(*args)

    monkeypatch.setattr(StereoWav, "put", noting_put)
    monkeypatch.setattr(Path, "write_text", noting_write_text)
    await hold_call(
        Script(opening="hello there"),
        silence(2),
        lambda service, timing: [
            StereoRecorder(service, tmp_path / "call.wav", **timing),
            TranscriptWriter(service, tmp_path / "call"),
        ],
    )
    assert threads and threading.main_thread() not in threads


def test_wav_is_whole_after_every_block(tmp_path):
    wav = StereoWav(tmp_path / "a.wav", 8_000)
    assert len(read_wav(tmp_path / "a.wav")[1]) == 0
    wav.put(AGENT, 3, np.array([1, 2, 3], "<i2").tobytes())
    wav.put(USER, -1, np.array([9, 7, 8], "<i2").tobytes())
    assert read_wav(tmp_path / "a.wav")[1].T.tolist() == [[7, 8, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3]]
    wav.put(AGENT, 4, None)
    wav.put(AGENT, 40, None)
    assert read_wav(tmp_path / "a.wav")[1].T.tolist() == [[7, 8, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    wav.close()


#
# transcript
#

TIMESTAMP = r"(\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3})"
TAG = re.compile(rf"<(/?v[^>]*|{TIMESTAMP})>")


@dataclass
class Cue:
    start_secs: float
    end_secs: float
    voice: str
    text: str
    times_secs: list[float]


def parse_webvtt(text: str) -> list[Cue]:
    """Parse the WebVTT that the W3C's specification allows authors to write, and no other."""
    head, *blocks = text.strip("\n").split("\n\n")
    assert head == "WEBVTT"
    cues = [parse_cue(block) for block in blocks]
    assert [cue.start_secs for cue in cues] == sorted(cue.start_secs for cue in cues)
    return cues


def parse_cue(block: str) -> Cue:
    timing, *lines = block.split("\n")
    match = re.fullmatch(f"{TIMESTAMP} --> {TIMESTAMP}", timing)
    assert match and lines and "-->" not in "".join(lines)
    start_secs, end_secs = secs(match.groups()[:4]), secs(match.groups()[4:])
    assert start_secs < end_secs
    payload = "\n".join(lines)
    times = [secs(m.groups()[1:]) for m in TAG.finditer(payload) if m[2]]
    assert times == sorted(set(times))
    assert all(start_secs < time_secs < end_secs for time_secs in times)
    plain = TAG.sub("", payload)
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", plain)
    voice = re.match(r"<v(?:\.\w+)* ([^>]+)>", payload)
    assert voice
    return Cue(start_secs, end_secs, voice[1], plain, times)


def secs(fields: Sequence[str]) -> float:
    hours, minutes, seconds, ms = map(int, fields)
    return hours * 3600 + minutes * 60 + seconds + ms / 1000


async def write_transcript(
    path: Path, script: Script, audio: np.ndarray, *before: FrameProcessor, cancel: bool = False
) -> tuple[list[dict], list[Cue], Call]:
    call = await hold_call(
        script, audio, lambda s, _: [*before, TranscriptWriter(s, path / "call")], cancel=cancel
    )
    lines = (path / "call.jsonl").read_text("utf-8").splitlines()
    cues = parse_webvtt((path / "call.vtt").read_text("utf-8"))
    return [json.loads(line) for line in lines], cues, call


@pytest.mark.slow
async def test_transcript_tells_who_said_what_when(tmp_path):
    question = speech("question")
    audio = np.concatenate([silence(2), question, silence(3)])
    script = Script(opening="hello there", replies=["five & <six>"])
    lines, cues, _ = await write_transcript(tmp_path, script, audio)
    opening, user, reply = lines
    begun_secs = (script.opening_step + 1) * STEP_SECS
    word_secs = WORD_STEPS * STEP_SECS
    assert opening == {
        "who": "agent",
        "what": "speech",
        "start_secs": pytest.approx(begun_secs, abs=1e-3),
        "end_secs": pytest.approx(begun_secs + 2 * word_secs, abs=0.005),
        "text": "hello there",
        "words": [
            {"time_secs": pytest.approx(begun_secs, abs=1e-3), "text": "hello"},
            {"time_secs": pytest.approx(begun_secs + word_secs, abs=1e-3), "text": "there"},
        ],
        "yielded": False,
    }
    assert (user["who"], user["what"]) == ("user", "speech")
    loud_secs = 2 + np.flatnonzero(np.abs(question) > 0.05)[[0, -1]] / 16_000
    assert user["start_secs"] == pytest.approx(loud_secs[0], abs=0.25)
    assert user["end_secs"] == pytest.approx(loud_secs[1], abs=0.4)
    assert (reply["who"], reply["text"]) == ("agent", "five & <six>")
    assert [(cue.voice, cue.text) for cue in cues] == [
        ("Agent", "hello there"),
        ("User", "(speaks)"),
        ("Agent", "five &amp; &lt;six&gt;"),
    ]
    assert cues[0].times_secs == [pytest.approx(begun_secs + word_secs, abs=1e-3)]


@pytest.mark.slow
async def test_transcript_notes_yields(tmp_path):
    audio = np.concatenate([silence(1), speech("question"), silence(2)])
    lines, cues, call = await write_transcript(
        tmp_path, Script(opening=STORY, yield_steps=8), audio
    )
    [noted] = [line for line in lines if line["what"] == "yield"]
    assert noted["delay_secs"] > 0
    [agent] = [line for line in lines if line["who"] == "agent" and line["what"] == "speech"]
    assert agent["yielded"] and agent["text"] == call.words()
    assert agent["end_secs"] == pytest.approx(noted["start_secs"], abs=0.005)
    assert STORY.startswith(agent["text"]) and agent["text"] != STORY
    marks = [cue.text.endswith("(yields)") for cue in cues if cue.voice == "Agent"]
    assert marks[-1] and sum(marks) == 1


@pytest.mark.slow
async def test_transcript_notes_backchannels(tmp_path):
    audio = np.concatenate([silence(1.2), speech("yeah_okay"), silence(4)])
    lines, cues, _ = await write_transcript(
        tmp_path, Script(opening=STORY, yield_steps=None), audio
    )
    [noted] = [line for line in lines if line["what"] == "backchannel"]
    assert 1.1 < noted["start_secs"] < noted["end_secs"] < 1.2 + len(speech("yeah_okay")) / 16_000
    assert ("User", "(backchannel)") in [(cue.voice, cue.text) for cue in cues]
    assert not any(line.get("yielded") for line in lines)
    # A long utterance is several subtitles, one after the other, with all its words.
    agent = [cue for cue in cues if cue.voice == "Agent"]
    assert len(agent) == 2 and " ".join(cue.text for cue in agent) == STORY
    assert agent[0].end_secs == agent[1].start_secs


class Transcriber(FrameProcessor):
    """Says what the user said, when they have said it, like an STT service."""

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.push_frame(TranscriptionFrame(" where is\nthe kitchen? ", "user", "now"))


@pytest.mark.slow
async def test_transcript_has_the_words_of_an_stt_service(tmp_path):
    audio = np.concatenate([silence(1), speech("question"), silence(2)])
    lines, cues, _ = await write_transcript(
        tmp_path, Script(replies=["five"]), audio, Transcriber()
    )
    [turn] = [line for line in lines if line["who"] == "user" and line["what"] == "speech"]
    [text] = [line for line in lines if line["what"] == "text"]
    assert text["text"] == "where is\nthe kitchen?"
    assert text["start_secs"] == turn["start_secs"]
    assert cues[0].text == "where is the kitchen?"


async def test_transcript_has_both_sides_however_late_the_users_words_come(tmp_path):
    words = " ".join(f"w{number}" for number in range(20))
    await talk(
        ScriptedBackend(Script(step_secs=0, yield_steps=None, replies=["my own"])),
        user_audio((1.0, False), (1.0, True), (2.5, False), (0.5, True), (6.0, False)),
        transcripts=[("tell me a story", 1), ("uh huh", 30)],
        replies=[Reply([(1, words)])],
        settings=DuplexLLMService.Settings(words="given"),
        behind=lambda service: [TranscriptWriter(service, tmp_path / "call")],
    )
    lines = [json.loads(line) for line in (tmp_path / "call.jsonl").read_text("utf-8").splitlines()]
    user = [line for line in lines if line["who"] == "user"]
    starts = [line["start_secs"] for line in user if line["what"] == "speech"]
    texts = [(line["start_secs"], line["text"]) for line in user if line["what"] == "text"]
    assert texts == [(starts[0], "tell me a story"), (starts[1], "uh huh")]
    [agent] = [line for line in lines if line["who"] == "agent" and line["what"] == "speech"]
    assert agent["text"] == words
    cues = parse_webvtt((tmp_path / "call.vtt").read_text("utf-8"))
    assert [cue.text for cue in cues if cue.voice == "User"] == ["tell me a story", "uh huh"]


async def test_transcript_of_a_cancelled_call_is_whole(tmp_path):
    audio = np.concatenate([silence(1), speech("question")[:24_000]])
    lines, cues, call = await write_transcript(
        tmp_path, Script(opening=STORY, yield_steps=None), audio, cancel=True
    )
    assert {line["who"] for line in lines} == {"user", "agent"}
    [agent] = [line for line in lines if line["who"] == "agent"]
    assert agent["text"] == call.words() and agent["text"]
    assert {cue.voice for cue in cues} == {"User", "Agent"}


async def test_transcript_reports_a_bad_path_and_the_call_goes_on(tmp_path):
    call = await hold_call(
        Script(opening="hello there"),
        silence(2),
        lambda service, _: [TranscriptWriter(service, tmp_path / "missing" / "call")],
    )
    [error] = call.errors()
    assert "The transcript cannot be written" in error
    assert call.words() == "hello there"


def test_webvtt_of_odd_speeches_is_valid():
    speeches = [
        Speech("agent", 3_700.0, 3_700.0, [Word(3_700.0, "a\n\n-->"), Word(3_700.0, "b")]),
        Speech("agent", 1.0, 1.0),
        Speech("user", 0.5, 0.5, text="<v Agent>fooled & more"),
    ]
    cues = parse_webvtt(webvtt(speeches))
    assert [(cue.voice, cue.start_secs) for cue in cues] == [("User", 0.5), ("Agent", 3_700.0)]
    assert parse_webvtt(webvtt([])) == []


#
# by the wall clock
#


def sounded_secs(call: Call, rate_hz: int) -> list[float]:
    """Return when the speaker began to play each frame of agent audio that it got."""
    begun, free_secs = [], 0.0
    for written_secs, audio in call.speaker.played:
        begun.append(max(written_secs, free_secs))
        free_secs = begun[-1] + len(audio) / 2 / rate_hz
    frames = call.behind.of(TTSAudioRawFrame)
    chunks = len(frames[0].audio) // len(call.speaker.played[0][1])
    return begun[: chunks * len(frames) : chunks]


@pytest.mark.slow
@by_the_clock
async def test_gate_decides_before_the_sound_and_the_recorder_keeps_to_the_models_time(tmp_path):
    """One call by the clock, in which packets are missing at the start and in the middle."""
    muted: list[tuple] = []

    def nodes(service, _timing):
        gate = ModerationGate(["secret code"])
        gate.add_event_handler("on_muted", noter(muted, "on_muted"))
        return [StereoRecorder(service, tmp_path / "call.wav"), gate]

    rate_hz = 24_000
    script = Script(opening="the secret code is one", replies=["all clear"], yield_steps=None)
    backend = Witness(script)
    user = np.concatenate([silence(2.4, rate_hz), speech("question", rate_hz), silence(2, rate_hz)])
    user += 0.005 * np.sin(np.arange(len(user))).astype(np.float32)  # Each sample tells its place.
    call = await hold_call(
        backend,
        user,
        nodes,
        rate_hz=rate_hz,
        realtime=True,
        gap_secs=(1.0, 1.7),
        inject={0.0: ClientConnectedFrame},
    )

    # How long before its sound the gate judged each word that it let through.
    begun_secs = dict(zip(call.behind.audio_pts_secs(), sounded_secs(call, rate_hz), strict=True))
    judged_secs = {
        seen.frame.time_secs: seen.time_secs
        for seen in call.behind.seen
        if isinstance(seen.frame, MonologueTextFrame)
    }
    leads_ms = [1000 * (begun_secs[round(t, 9)] - at) for t, at in judged_secs.items()]
    print(f"the gate judged words {min(leads_ms):.2f} to {max(leads_ms):.2f} ms before their sound")
    assert len(leads_ms) == 4 and min(leads_ms) > 0
    [(_, event)] = muted
    first_word_secs = (script.opening_step + 1) * STEP_SECS
    assert event.time_secs == pytest.approx(first_word_secs + 2 * WORD_STEPS * STEP_SECS)
    assert not any(event.time_secs - 1e-6 <= pts < 2.4 for pts in begun_secs)

    # The user's channel is what the model heard, silence in the gap included.
    _, recorded = read_wav(tmp_path / "call.wav")
    heard = np.concatenate(backend.heard)
    assert len(heard) / rate_hz > len(user) / rate_hz - 0.3
    gap = heard[round(1.2 * rate_hz) : round(1.6 * rate_hz)]
    assert not gap.any() and heard[round(2 * rate_hz) :].any()
    # Service and recorder each decide on a packet that comes when its place is about to be filled.
    samples = round(STEP_SECS * rate_hz)
    places = {step.tobytes(): i for i, step in enumerate(pcm16(heard).reshape(-1, samples))}
    kept = recorded[: len(recorded) // samples * samples, USER].reshape(-1, samples)
    heard_at = [places.get(step.tobytes()) for step in kept]
    moved = [abs(at - i) for i, at in enumerate(heard_at) if at is not None and kept[i].any()]
    lost = sum(at is None and kept[i].any() for i, at in enumerate(heard_at))
    assert len(moved) > 40 and max(moved) <= 1 and lost <= len(moved) / 10
