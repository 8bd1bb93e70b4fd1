"""The benchmark's other users: recordings, sounds that are no speech, and the agent's own voice."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.duplex.dialogue import Dialogue, Ear, Moment
from benchmarks.duplex.figures import measure, summarise
from benchmarks.duplex.people import NoPeople, people_plans
from benchmarks.duplex.report import Report, as_json, markdown
from benchmarks.duplex.smart_turn import Decisions, SmartTurn
from benchmarks.duplex.stage import in_lock_step
from benchmarks.duplex.surroundings import ECHO, NoSounds, echo_plans, sound_plans
from benchmarks.duplex.users import Echo, Plan, User
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES
from training import world
from training.people import MANIFEST, read_manifest, speech_of
from training.speech import synthesise

needs_speech = pytest.mark.needs("flite", "espeak-ng", "soxr")
TEXTS = (
    "we walked along the river in the evening",
    "right the old man said thank you and left",
    "nobody knows where the keys are now",
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three speakers, by a synthesiser; of the third only the sound is known."""
    folder = tmp_path_factory.mktemp("people")
    lines = []
    for number, text in enumerate(TEXTS):
        speech = synthesise(text, "flite:awb")
        silence = np.zeros(SAMPLE_RATE_HZ // 2, np.float32)
        path = f"{number}.wav"
        soundfile.write(
            folder / path, np.concatenate([silence, speech.samples, silence]), SAMPLE_RATE_HZ
        )
        words = [[word.label, 0.5 + word.start, 0.5 + word.end] for word in speech.words]
        known = {"speaker": f"speaker {number}", "text": text, "words": words}
        lines.append({"path": path, "source": "test"} | (known if number < 2 else {}))
    (folder / MANIFEST).write_text("\n".join(map(json.dumps, lines)))
    return folder


def held(plans: list[Plan], script: Script) -> list[Dialogue]:
    backend = ScriptedBackend(script, slots=len(plans))
    return asyncio.run(in_lock_step(backend, plans, at_once=len(plans), seeds=[None] * len(plans)))


@needs_speech
def test_a_recording_is_heard_from_its_first_word_to_its_last(recordings: Path):
    known, _, unknown = read_manifest(recordings)
    for recording in (known, unknown):
        speech = speech_of(recording)
        whole = speech.words[-1].end - speech.words[0].start
        assert whole == pytest.approx(len(recording.samples()) / SAMPLE_RATE_HZ - 1, abs=0.12)
    assert speech_of(known).words[1].label == "walked"
    assert unknown.speaker == "2.wav"  # nobody knows: a speaker of its own


@needs_speech
def test_people_ask_pause_and_talk_over(recordings: Path):
    plans = list(people_plans(recordings, 4, 1, everybody=True))
    turns = [turn for plan in plans for turn in plan.turns]
    kinds = {turn.kind for turn in turns}
    assert kinds == {"ask", "pause", "barge_in", "backchannel"}
    for turn in turns:
        line = turn.over or turn.line
        assert 0.1 < line.end_secs - line.start_secs < 6
        if turn.kind == "pause":
            begin_secs, end_secs = line.pause_secs
            pause = line.pcm[round(begin_secs * 24_000) + 99 : round(end_secs * 24_000) - 99]
            assert line.start_secs < begin_secs < end_secs < line.end_secs
            assert np.abs(pause).max() < 0.05 * np.abs(line.pcm).max()
        if turn.kind == "backchannel":
            assert (line.text, line.answer) == ("right", "")
    # What is something of the world is owed its own answer, all else the same.
    owed = {turn.line.text: turn.line.answer for turn in turns if turn.over is None}
    assert owed.pop("thank you") == "you are welcome"
    assert set(owed.values()) == {world.UNKNOWN}


@needs_speech
def test_a_recording_that_is_a_question_of_the_world_is_owed_its_answer(tmp_path: Path):
    speech = synthesise("what is your name", "flite:awb")
    soundfile.write(tmp_path / "a.wav", speech.samples, SAMPLE_RATE_HZ)
    words = [[word.label, word.start, word.end] for word in speech.words]
    line = {"path": "a.wav", "source": "test", "speaker": "a", "words": words}
    (tmp_path / MANIFEST).write_text(json.dumps(line))
    turns = [turn for plan in people_plans(tmp_path, 2, 1, everybody=True) for turn in plan.turns]
    lines = [turn.over or turn.line for turn in turns]
    assert {(line.kind, line.answer) for line in lines} == {("name", "my name is nora")}


@needs_speech
def test_a_folder_without_people_is_named(tmp_path: Path, recordings: Path):
    with pytest.raises(NoPeople, match=r"no manifest\.jsonl"):
        list(people_plans(tmp_path, 1, 1))
    kept = [item for item in read_manifest(recordings) if item.held_out]
    (tmp_path / MANIFEST).write_text(
        "\n".join(
            json.dumps({"path": str(item.path), "source": "test", "speaker": item.speaker})
            for item in read_manifest(recordings)
            if item not in kept
        )
    )
    with pytest.raises(NoPeople, match="kept out of the training"):
        list(people_plans(tmp_path, 1, 1))


@needs_speech
def test_sounds_take_no_turn_of_an_agent_that_is_silent_and_stop_one_that_hears_loudness(
    tmp_path: Path,
):
    noise = np.random.default_rng(0).normal(size=SAMPLE_RATE_HZ) * 0.2
    soundfile.write(tmp_path / "bang.wav", noise, SAMPLE_RATE_HZ)
    plans = [
        Plan(plan.voice, plan.group, np.zeros(SAMPLE_RATE_HZ, np.float32), True, plan.turns)
        for plan in sound_plans(2, 1, tmp_path, None)
    ]
    assert {turn.line.text for plan in plans for turn in plan.turns if not turn.over} == {"bang"}
    found = outcomes(held(plans, Script(step_secs=0)))
    assert as_json(Report("silent", "in lock step", 2, 1, knows_world=True, outcomes=found))
    silent = summarise(found)
    assert silent.starts_at_sounds.of == 10 and silent.starts_at_sounds.hits == 0
    script = Script(replies=[world.STORY], reply_steps=3, yield_steps=2, step_secs=0)
    loud = summarise(outcomes(held(plans, script)))
    assert loud.starts_at_sounds.hits  # where the microphone has them loud enough
    assert loud.goes_on_through_sounds.hits < loud.goes_on_through_sounds.of


def test_a_folder_without_sounds_is_named(tmp_path: Path):
    with pytest.raises(NoSounds, match="no sounds"):
        list(sound_plans(1, 1, tmp_path, None))


def outcomes(dialogues: list[Dialogue]):
    return [item for i, d in enumerate(dialogues) for item in measure(d, i, knows_world=True)]


@needs_speech
def test_the_agents_voice_comes_back_later_and_fainter():
    (plan,) = echo_plans(("espeak:en-gb+m6",), 1, 1, -12.0, None)
    assert plan.group == ECHO and 0.08 <= plan.echo.delay_secs <= 0.32
    plan = Plan("", ECHO, np.zeros(SAMPLE_RATE_HZ, np.float32), True, (), Echo(-20.0, 0.16))
    user = User(plan)
    said = np.arange(1, STEP_SAMPLES + 1, dtype=np.float32) / STEP_SAMPLES
    frames = user.frames()
    next(frames)
    user.ear.hear(user.now_secs, said)  # it plays during the second step
    heard = np.concatenate([next(frames) for _ in range(4)])
    onset = round(0.16 * SAMPLE_RATE_HZ)
    assert not heard[:onset].any()
    assert heard[onset : onset + STEP_SAMPLES] == pytest.approx(0.1 * said, abs=1e-6)


def test_the_ear_knows_what_was_played():
    ear = Ear()
    ear.hear(1.0, np.full(STEP_SAMPLES, 0.5, np.float32))
    played = ear.played(1.0 - 10 / SAMPLE_RATE_HZ, STEP_SAMPLES)
    assert not played[:10].any() and (played[10:] == 0.5).all()
    assert not ear.played(2.0, 100).any()


def test_a_long_answer_is_whole_or_not():
    moment = Moment("story", "tell me a story", "story", world.STORY, 1.0, 2.0, until_secs=12.0)
    times = np.linspace(2.4, 9, len(world.STORY.split())).tolist()
    words = list(zip(times, world.STORY.split(), strict=True))
    misheard = list(zip(times, world.UNKNOWN.split(), strict=False))
    for said, whole in ((words, True), (words[:9], False), (misheard, None)):
        silence = np.zeros(1, np.float32)
        dialogue = Dialogue("", ECHO, silence, silence, said, [moment])
        assert measure(dialogue, 0, knows_world=True)[0].whole is whole


@needs_speech
def test_smart_turn_is_asked_after_the_sentence_and_in_the_pause():
    (sentence,) = [synthesise("what time does the last train leave", "flite:rms").samples]
    pcm = np.concatenate([np.zeros(24_000, np.float32), sentence, np.zeros(24_000, np.float32)])
    end_secs = 1 + len(sentence) / SAMPLE_RATE_HZ
    asked = Moment("ask", "", "", "", 1.0, end_secs)
    paused = Moment("pause", "", "", "", 1.0, end_secs, pause_secs=(1.4, 1.9))
    dialogue = Dialogue("", "people", pcm, pcm, [], [asked, paused])
    found = SmartTurn().decide([dialogue])
    assert len(found.complete_after) == 2 and found.complete_after[0] == found.complete_after[1]
    assert found.complete_in_pause == [False]


def test_the_table_has_only_rows_that_somebody_has():
    report = Report("embedded", "in lock step", 1, 7, knows_world=True)
    moment = Moment("sound", "cough", "sound", "", 1.0, 2.0, until_secs=5.0)
    silence = np.zeros(8 * SAMPLE_RATE_HZ, np.float32)
    report.groups["sounds"] = summarise(
        measure(Dialogue("", "sounds", silence, silence, [], [moment]), 0, knows_world=True)
    )
    report.smart_turn["sounds"] = Decisions([True, False], [])
    assert json.loads(as_json(report))["smart_turn"]["sounds"]["complete_after"] == [True, False]
    table = markdown(report)
    assert "| takes the turn at a sound that is no speech | ≤ 0.10 | 0.00" in table
    assert '"complete" after the sentence | | 0.50' in table
    assert "barge-in within" not in table


@pytest.mark.slow
def test_the_command_names_what_it_cannot_use(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.duplex", "--voices", "--people", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.strip().endswith(f"{tmp_path} has no manifest.jsonl")
