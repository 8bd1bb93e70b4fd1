"""What the training hears beside questions: open sentences, sounds, people, its own echo."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.engine.bank import SPEECH, heard
from training import acoustics, corpus, people, world
from training.bank import A_SESSION, draw_sessions, lay_speech
from training.corpus import Utterance, with_pauses
from training.dialogues import Composer, Habits
from training.scenes import (
    SCENE_STEPS,
    SceneComposer,
    SceneHabits,
    read_scenes,
    write_scenes,
)
from training.sentences import draw_sentence
from training.sizes import CODEBOOKS, PADDING_ID, SAMPLE_RATE, STEP_SAMPLES
from training.sounds import can_play_music, draw_sound
from training.speech import Span, Speech
from training.tokenizer import build_tokenizer

pytestmark = pytest.mark.engine


def spoken(text: str, kind: str, secs: float = 1.2) -> Utterance:
    """An utterance that is noise, with words of one length."""
    rng = np.random.default_rng(len(text))
    words = text.replace("| ", "").split()
    edges = np.linspace(0.02, secs - 0.02, len(words) + 1).tolist()
    spans = tuple(Span(*item) for item in zip(words, edges, edges[1:], strict=False))
    samples = 0.1 * rng.standard_normal(round(secs * SAMPLE_RATE)).astype(np.float32)
    return Utterance(text, kind, "noise", Speech(samples, (), spans))


UTTERANCES = [
    spoken("tell me a | story", "story"),
    spoken("please stop", "stop", 0.6),
    spoken("uh huh", "backchannel", 0.4),
    spoken("somebody has left the red car at the station", "outside", 2.5),
    spoken(corpus.SOUND_WORD, "sound", 0.7),
]


def test_open_sentences_are_words_of_any_number_and_none_is_of_the_world():
    rng = np.random.default_rng(0)
    made = [draw_sentence(rng) for _ in range(2_000)]
    known = {exchange.words for exchange in world.exchanges()} | set(world.BACKCHANNELS)
    lengths = [len(text.split()) for text in made]
    assert min(lengths) <= 2 and 25 < max(lengths) <= 32
    assert len(set(made)) > 1_500 and not set(made) & known
    assert all(text.replace(" ", "").replace("'", "").isalpha() for text in made)
    assert draw_sentence(np.random.default_rng(5)) == draw_sentence(np.random.default_rng(5))


def test_sounds_are_of_many_kinds_and_the_same_each_time():
    drawn = [draw_sound(np.random.default_rng([0, index])) for index in range(60)]
    assert len({kind for kind, _ in drawn}) >= 10
    for kind, samples in drawn:
        assert samples.dtype == np.float32 and np.isfinite(samples).all(), kind
        assert float(np.abs(samples).max()) == pytest.approx(1.0)
    again = draw_sound(np.random.default_rng([0, 7]))
    assert again[0] == drawn[7][0] and (again[1] == drawn[7][1]).all()
    assert can_play_music() or "music" not in {kind for kind, _ in drawn}


def test_pauses_are_silence_and_move_what_follows():
    speech = spoken("one two three four", "outside").speech
    paused = with_pauses(speech, {1: 0.5, 3: 0.25})
    late = [
        after.start - before.start for before, after in zip(speech.words, paused.words, strict=True)
    ]
    assert late == pytest.approx([0, 0.5, 0.5, 0.75])
    assert len(paused.samples) - len(speech.samples) == round(0.75 * SAMPLE_RATE)
    at = round(speech.words[1].start * SAMPLE_RATE)
    assert not paused.samples[at : at + SAMPLE_RATE // 2].any()


def test_a_session_has_some_of_each_kind():
    drawn = next(draw_sessions(UTTERANCES, np.random.default_rng(0)))
    kinds = [item.kind for item in drawn]
    assert len(drawn) == sum(A_SESSION.values())
    for kind in ("backchannel", "sound", "outside"):
        assert kinds.count(kind) == A_SESSION[kind]
    sound, level, said = lay_speech(drawn, np.random.default_rng(0))
    assert level > 0.01 and len(said) >= 10
    for item in said:
        stretch = sound[item.onset * STEP_SAMPLES : (item.end + 1) * STEP_SAMPLES]
        assert np.abs(stretch).max() > 0.001
    assert not sound[: said[0].onset * STEP_SAMPLES].any()


def test_it_answers_open_sentences_late_and_sounds_never(bank: Path, tmp_path: Path):
    habits = Habits(told=0, goes_on=0, unknown_goes_on=0, barge_in=0, backchannel=0, told_instead=0)
    composer = Composer(bank, build_tokenizer(tmp_path / "tokenizer"), habits=habits)
    for session in composer.sessions:
        session.heard[1] = heard("nobody knows this", "outside", 70, 10)
        session.heard.append(heard(corpus.SOUND_WORD, "sound", 180, 6))
    rng = np.random.default_rng(0)
    open_sentences = sounds = 0
    for _ in range(30):
        dialogue = composer.dialogue(512, rng)
        notes = dialogue.notes
        for (step, what), (then, follows) in itertools.pairwise(notes):
            if what == "user: nobody knows this":
                assert follows == f"agent: {world.UNKNOWN}"
                assert habits.unknown_gap <= then - (step + 10 + 1) < habits.unknown_gap + 8
                open_sentences += 1
            if what == f"user: {corpus.SOUND_WORD}":
                assert not follows.startswith("agent")
                sounds += 1
                # Whoever spoke when it began still speaks.
                during = dialogue.codes[1, step : step + 8] == SPEECH
                assert not during[0] or during[: min(4, len(during))].all()
    assert open_sentences > 20 and sounds > 20


class FakeMimi:
    """A codec whose sound is loud where the agent speaks."""

    def decode(self, codes):
        import torch

        return torch.full((1, 1, codes.shape[-1] * STEP_SAMPLES), 0.1)


def scene_composer(bank: Path, tmp_path: Path, **habits) -> SceneComposer:
    composer = Composer(bank, build_tokenizer(tmp_path / "tokenizer"), users="none")
    noise = 0.3 * np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    made = SceneComposer(composer, [noise], FakeMimi())
    made.habits = SceneHabits(**habits)
    return made


def test_a_scene_holds_the_agents_echo_and_nothing_else_is_late(bank: Path, tmp_path: Path):
    quiet = scene_composer(bank, tmp_path, echo=0.0, without_events=1.0, bed=0.0)
    loud = scene_composer(
        bank, tmp_path, echo=1.0, echo_db=(-20.0, -20.0), without_events=1.0, bed=0.0
    )
    (first, without), (second, with_echo) = (
        next(made.scenes(UTTERANCES, np.random.default_rng(3))) for made in (quiet, loud)
    )
    assert (first.codes == second.codes).all()  # the agent does the same
    echo = with_echo - without
    starts = [step for step, what in first.notes if what.startswith(("agent", "told"))]
    before, after = (starts[0] - 1) * STEP_SAMPLES, (starts[0] + 12) * STEP_SAMPLES
    assert np.abs(echo[:before]).max() < 1e-5
    assert 0.0005 < np.abs(echo[before:after]).max() < 0.1
    assert second.decisive.sum() > first.decisive.sum()


def test_scenes_are_kept(bank: Path, tmp_path: Path):
    made = scene_composer(bank, tmp_path)
    scenes = made.scenes(UTTERANCES, np.random.default_rng(1))
    dialogues = [next(scenes)[0] for _ in range(2)]
    write_scenes(tmp_path / "scenes-000.npz", dialogues)
    for before, after in zip(dialogues, read_scenes(tmp_path / "scenes-000.npz"), strict=True):
        assert after.codes.shape == (1 + 2 * CODEBOOKS, SCENE_STEPS)
        assert (before.codes == after.codes).all() and (before.decisive == after.decisive).all()
        assert (before.answer == after.answer).all() and (after.codes[0] > PADDING_ID).any()


def test_the_echo_keeps_its_level_and_its_delay():
    agent = np.zeros(SAMPLE_RATE)
    agent[2_400:4_800] = 0.2 * np.sin(np.arange(2_400) * 0.3)
    heard_echo = acoustics.echo(agent, 0.2, 0.1, np.random.default_rng(0))
    onset = np.flatnonzero(np.abs(heard_echo) > 0.001)[0]
    assert onset == pytest.approx(2_400 + 4_800, abs=60)
    assert 0.004 < np.abs(heard_echo).max() < 0.06


def write_people(folder: Path) -> None:
    """Recordings of nobody, of twenty speakers."""
    lines = []
    for number in range(20):
        samples = np.zeros(2 * SAMPLE_RATE, np.float32)
        samples[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2] = 0.1
        soundfile.write(folder / f"{number}.wav", samples, SAMPLE_RATE)
        words = [["and", 0.5, 0.8], ["thank", 0.8, 1.1], ["you", 1.1, 1.45]]
        known = {"speaker": f"{number}", "words": words} if number else {}
        lines.append(json.dumps({"path": f"{number}.wav", "source": "test"} | known))
    (folder / people.MANIFEST).write_text("\n".join(lines))


def test_people_of_the_held_out_speakers_are_not_in_the_corpus(tmp_path: Path):
    write_people(tmp_path)
    recordings = list(people.read_manifest(tmp_path))
    kept = {item.speaker for item in recordings if item.held_out}
    assert 1 <= len(kept) <= 9
    corpus.make_people(tmp_path, tmp_path)
    made = list(corpus.read_corpus(tmp_path, corpus.PEOPLE))
    assert {item.voice.split("/")[1] for item in made} == {r.speaker for r in recordings} - kept
    assert {item.text for item in made} >= {"and thank you", "thank you"}
    cut = next(item for item in made if item.text == "thank you")
    assert cut.kind == "thanks"
    assert len(cut.speech.samples) / SAMPLE_RATE == pytest.approx(0.65 + 0.06, abs=0.01)
