"""What the dialogues of the training teach: who speaks when."""

from pathlib import Path

import numpy as np
import pytest

from tests.engine.bank import (
    ENDING,
    SILENCE,
    SPEECH,
    STEPS,
    TOLD,
    WORD_STEPS,
    word_answer,
)
from training import world
from training.bank import TAIL_STEPS, join
from training.dialogues import BACKCHANNEL, QUESTION, Composer, Dialogue, Habits
from training.sizes import CODEBOOKS, PADDING_ID
from training.tokenizer import build_tokenizer

pytestmark = pytest.mark.engine


def composer(bank: Path, tmp_path: Path, **habits) -> Composer:
    return Composer(bank, build_tokenizer(tmp_path / "tokenizer"), habits=Habits(**habits))


def dialogues(bank: Path, tmp_path: Path, count: int = 60, **habits) -> list[Dialogue]:
    rng = np.random.default_rng(0)
    made = composer(bank, tmp_path, **habits)
    return [made.dialogue(STEPS, rng) for _ in range(count)]


def test_yields_soon_after_the_onset_and_more_seldom_later(bank: Path, tmp_path: Path):
    delays = []
    for dialogue in dialogues(bank, tmp_path, told=0.0, goes_on=0.0, yield_late=0.0):
        endings = np.flatnonzero(dialogue.codes[1] == ENDING)
        onsets = [step for step, what in dialogue.notes if what.startswith("barge-in")]
        for onset in onsets:
            after = endings[endings >= onset]
            if len(after):
                delays.append(int(after[0] - onset))
    counts = np.bincount(delays)
    assert len(delays) > 100
    assert not counts[:4].any()
    assert 0.9 < counts[4] / len(delays) < 1
    assert counts[5] > counts[6:].sum()


def test_goes_on_through_backchannels(bank: Path, tmp_path: Path):
    habits = {"told": 0.0, "barge_in": 0.0, "goes_on": 0.0, "between_turns": 0.0, "gated": 0.0}
    agreed = 0
    for dialogue in dialogues(bank, tmp_path, backchannel=1.0, **habits):
        assert not (dialogue.codes[1] == ENDING).any()
        agreed += (dialogue.aim == BACKCHANNEL).any()
        speaking = dialogue.codes[1] == SPEECH
        assert speaking[dialogue.aim == BACKCHANNEL].all()
        assert dialogue.decisive.any() == (dialogue.aim == BACKCHANNEL).any()
    assert agreed > 30


def test_the_aim_is_told_after_the_onset(bank: Path, tmp_path: Path):
    for dialogue in dialogues(bank, tmp_path, count=10, gated=0.0):
        for step, what in dialogue.notes:
            if what.startswith("user: what"):
                assert dialogue.aim[step] != QUESTION or dialogue.aim[step - 1] == QUESTION
                assert dialogue.aim[step + 1 : step + 5].tolist()[: STEPS - step - 1] == (
                    [QUESTION] * min(4, STEPS - step - 1)
                )


def test_while_it_speaks_it_hears_only_the_end_of_a_barge_in(bank: Path, tmp_path: Path):
    habits = {"gated": 1.0, "let_in": 0.0, "goes_on": 0.0, "told": 0.0}
    lost = []
    for dialogue in dialogues(bank, tmp_path, **habits):
        heard = (dialogue.codes[1 + CODEBOOKS :] != SILENCE).any(0)
        speaking = dialogue.codes[1] == SPEECH
        barge_ins = [step for step, what in dialogue.notes if what.startswith("barge-in")]
        near = np.zeros(STEPS, bool)
        for step in np.flatnonzero(speaking[1:] & ~speaking[:-1]):
            near[step + 1 : step + 3] = True  # the end of the question that it answers
        for onset in barge_ins:
            near[onset : onset + 9] = True
            ahead = np.flatnonzero(heard[onset : onset + 9])
            lost += [int(ahead[0])] if len(ahead) else []
        assert not (heard & speaking & ~near).any()
        assert not (dialogue.aim[speaking & ~heard & ~near] > 0).any()
    counts = np.bincount(lost)
    assert len(counts) <= 4
    assert counts[0] < counts[1]


@pytest.mark.slow
def test_told_words_are_given_but_not_when_they_go_on(bank: Path, tmp_path: Path):
    found = 0
    for dialogue in dialogues(bank, tmp_path, told=0.6, told_instead=0.0, told_barge_in=0.0):
        text = dialogue.codes[0]
        for step, what in dialogue.notes:
            if not what.startswith("told: "):
                continue
            said = what.removeprefix("told: ").split()
            length = len(said) * WORD_STEPS
            if step + length >= STEPS:
                continue
            found += 1
            given = dialogue.given[step : step + length]
            words = text[step : step + length] > PADDING_ID
            assert np.flatnonzero(words).tolist() == list(range(0, length, WORD_STEPS))
            assert given[words].all()
            assert not given[~words].any()
            assert dialogue.given[step - 1]  # the mark: that it speaks at all
            assert (dialogue.codes[1, step : step + length] == TOLD).all()
            assert dialogue.codes[1, step + length] == SILENCE
    assert found > 20


@pytest.mark.slow
def test_the_story_is_told_in_stretches_and_talked_over(bank: Path, tmp_path: Path):
    """As while a TTS speaks: it stops where the user asks, and not at a backchannel."""
    story, cut, whole = " ".join(3 * [world.STORY]), 0, 0
    habits = {"told": 0.9, "told_answer": 0.0, "told_story": 1.0, "goes_on": 0.0}
    habits |= {"told_barge_in": 0.45, "told_backchannel": 0.35}
    for dialogue in dialogues(bank, tmp_path, count=20, **habits):
        for step, what in dialogue.notes:
            if not what.startswith("told: "):
                continue
            text = what.removeprefix("told: ").removesuffix(" (cut)")
            assert text in story and 10 <= len(text.split()) < 40
            if not what.endswith(" (cut)"):
                whole += 1
                continue
            cut += 1
            asked = [at for at, who in dialogue.notes if at > step and who.startswith("user: ")]
            spoken = np.flatnonzero(
                dialogue.codes[1, step : min(asked, default=STEPS) + 12] == TOLD
            )
            assert not len(spoken) or spoken[-1] < len(text.split()) * WORD_STEPS
    assert cut > 10 and whole > 10


def test_told_words_may_come_where_an_answer_is_owed(bank: Path, tmp_path: Path):
    made = dialogues(bank, tmp_path, count=5, told=0.0, told_instead=1.0, goes_on=0.0)

    for dialogue in made:
        speakers = [what.split(":")[0] for step, what in dialogue.notes]
        asked = [index for index, who in enumerate(speakers) if who == "user"]
        assert any(speakers[index + 1 : index + 2] == ["told"] for index in asked)
        assert not any(speakers[index + 1 : index + 2] == ["agent"] for index in asked)
        assert (dialogue.answer < 0).all()


def test_a_sentence_in_words_can_end_in_each_of_them():
    sentence = join([word_answer(word) for word in ("nine", "small", "days")])

    assert sentence.text == "nine small days"
    assert sentence.steps == 3 * WORD_STEPS
    assert sentence.word_steps == [0, 4, 8]
    assert sentence.cut_steps == list(range(12))
    assert sentence.codes.shape == (CODEBOOKS, 12 + TAIL_STEPS)
    for index in range(12):
        ended = sentence.faded(index)[0]
        assert (ended[:index] == TOLD).all()
        assert ended[index] == ENDING
        assert len(ended) == index + 1 + TAIL_STEPS


def test_what_it_answers_by_itself_is_not_given(bank: Path, tmp_path: Path):
    for dialogue in dialogues(bank, tmp_path, count=10, told=0.0, told_instead=0.0):
        assert not dialogue.given.any()


def test_new_sentences_are_of_its_words():
    rng = np.random.default_rng(0)
    words, answers = set(world.agent_words()), set(world.answers())
    made = [world.new_sentence(rng) for _ in range(200)]
    assert all(2 <= len(text.split()) <= 10 and set(text.split()) <= words for text in made)
    assert sum(text in answers for text in made) < 10
