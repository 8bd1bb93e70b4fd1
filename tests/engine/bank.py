"""A bank whose codes say what they are: speech, its ending, silence."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from training import world
from training.bank import TAIL_STEPS, Answer, Heard, Session, write_answers, write_sessions
from training.sizes import CODEBOOKS

SPEECH, ENDING, SILENCE = 7, 8, 0
STEPS = 512
STORY_STEPS = 90
TOLD = 9
WORD_STEPS = 4


def answer(text: str, steps: int, speech: int = SPEECH) -> Answer:
    """An answer whose codes say what they are: speech, its ending, silence."""
    codes = np.full((CODEBOOKS, steps + TAIL_STEPS), SILENCE, np.uint16)
    codes[:, :steps] = speech
    cuts = np.full((steps - 2, CODEBOOKS, 1 + TAIL_STEPS), SILENCE, np.uint16)
    cuts[:, :, 0] = ENDING
    words = len(text.split())
    word_steps = [1 + index * (steps - 2) // words for index in range(words)]
    return Answer(text, steps, word_steps, list(range(2, steps)), codes, cuts)


def word_answer(word: str) -> Answer:
    """A word as it is said when it is told: from its first frame on, and can fade anywhere."""
    cuts = np.full((WORD_STEPS, CODEBOOKS, 1 + TAIL_STEPS), SILENCE, np.uint16)
    cuts[:, :, 0] = ENDING
    whole = answer(word, WORD_STEPS, TOLD)
    return replace(whole, word_steps=[0], cut_steps=list(range(WORD_STEPS)), cuts=cuts)


def heard(text: str, kind: str, onset: int, steps: int) -> Heard:
    words = len(text.replace("| ", "").split())
    ends = [onset + steps * (index + 1) // words for index in range(words)]
    return Heard(text, kind, onset, ends[-1], ends, None)


def write_bank(folder: Path) -> None:
    """The agent's answers and words, and one session of a user."""
    answers = [
        answer(text, STORY_STEPS if text == world.STORY else 4 * len(text.split()))
        for text in world.answers()
    ]
    silence = np.full(CODEBOOKS, SILENCE)
    write_answers(folder / "agent.npz", answers, silence)
    words = [word_answer(word) for word in world.agent_words()]
    write_answers(folder / "words.npz", words, silence)
    said = [
        heard("tell me a | story", "story", 30, 12),
        heard("what is your | name", "name", 70, 10),
        heard("uh huh", "backchannel", 110, 5),
        heard("please stop", "stop", 150, 8),
    ]
    codes = np.full((CODEBOOKS, 200), 3, np.uint16)
    write_sessions(folder / "users-000.npz", [Session(codes, said)])
