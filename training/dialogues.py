"""Two-channel dialogues, composed from encoded speech as training goes on.

Nothing is stored: ``Composer.dialogue`` lays a new dialogue each time, in codes. Who speaks when
follows the behaviour that the model should have:

- the agent answers a complete sentence after one to three steps, and waits through pauses in it;
- it speaks first when nobody has spoken for two seconds at the start;
- talked over by a question, it fades out four steps after the user's onset, then answers; now and
  then it is six or eight, so that a yield that was missed can still come;
- when the user goes on just after a sentence, it drops that sentence's answer;
- it goes on through backchannels, and never answers one.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece

from training import world
from training.bank import (
    CUT_EVERY,
    FIRST_CUT,
    LEAD_STEPS,
    Answer,
    Heard,
    Session,
    read_answers,
    read_sessions,
)
from training.sizes import CODEBOOKS, END_OF_PADDING_ID, PADDING_ID
from training.tokenizer import WORD_START

FIRST_WORD_STEPS = 25  # two seconds of silence, then the agent opens the conversation
AFTER_STEPS = 4  # of a user's utterance: the last sound fades in the room
NO_LABEL = -100


@dataclass
class Habits:
    """How often things happen."""

    agent_opens: float = 0.2
    answer_gap: tuple[float, ...] = (0.0, 0.25, 0.45, 0.3)  # share of gaps of 0, 1, 2, 3 steps
    goes_on: float = 0.1  # the user speaks again when the agent is about to, or has just begun
    barge_in: float = 0.35
    barge_in_stop: float = 0.35
    backchannel: float = 0.4
    pause: float = 0.25  # of questions that are picked for the pause in them
    # Shares of yields that begin so many steps after the step of the user's onset. Few choices: the
    # model hardly samples, so what is never likely at any one step would always come too late.
    yield_steps: tuple[float, ...] = (0, 0, 0, 0, 0.75, 0, 0.17, 0, 0.08)
    long_answer: int = 16  # steps from which an answer can be talked over


@dataclass
class Dialogue:
    """One dialogue in steps.

    Attributes:
        codes: ``(17, steps)``: text, the agent's eight codebooks, the user's eight.
        heard_word: ``(steps,)``: the user's latest complete word, by number, while the user speaks;
            a label for training only.
        answer: ``(steps,)``: number of the owed answer, from the end of the question into the
            answer's first word; else ``NO_LABEL``. A label for training only.
        notes: what happens when, for people and tests.
    """

    codes: np.ndarray
    heard_word: np.ndarray
    answer: np.ndarray
    notes: list[tuple[int, str]] = field(default_factory=list)


class Composer:
    """Lays dialogues from the bank."""

    def __init__(
        self,
        bank: Path,
        tokenizer: sentencepiece.SentencePieceProcessor,
        users: str = "users",
        habits: Habits | None = None,
    ) -> None:
        self.habits = habits or Habits()
        answers, self.silence = read_answers(bank / "agent.npz")
        self.answers = {answer.text: answer for answer in answers}
        self.answer_ids = {text: number for number, text in enumerate(self.answers)}
        self.sessions = [s for s in read_sessions(bank, users) if len(s.heard) >= 4]
        questions = world.exchanges() + world.more_outside_exchanges() + world.held_out_exchanges()
        self.owed = {exchange.question: exchange.answer for exchange in questions}
        self.word_ids = {word: number for number, word in enumerate(world.user_words(), start=1)}
        self.tokenizer = tokenizer
        self.pieces = {word: self._piece(word) for word in world.agent_words()}

    def _piece(self, word: str) -> int:
        piece = self.tokenizer.piece_to_id(WORD_START + word)
        assert piece > PADDING_ID, f"{word!r} is not a piece"
        return piece

    def dialogue(self, steps: int, rng: np.random.Generator) -> Dialogue:
        """A dialogue of ``steps`` steps."""
        session = self.sessions[rng.integers(len(self.sessions))]
        return _Layout(self, session, steps, rng).lay()


class _Layout:
    """One dialogue while it is being laid."""

    def __init__(
        self, composer: Composer, session: Session, steps: int, rng: np.random.Generator
    ) -> None:
        self.composer, self.habits = composer, composer.habits
        self.session, self.steps, self.rng = session, steps, rng
        codes = np.empty((1 + 2 * CODEBOOKS, steps), np.int64)
        codes[0] = PADDING_ID
        codes[1 : 1 + CODEBOOKS] = composer.silence[:, None]
        codes[1 + CODEBOOKS :] = self._background(steps)
        labels = np.full((2, steps), NO_LABEL)
        labels[0] = 0
        self.out = Dialogue(codes, labels[0], labels[1])
        self.ready = list(rng.permutation(len(session.heard)))

    def lay(self) -> Dialogue:
        rng = self.rng
        if rng.random() < self.habits.agent_opens:
            start = FIRST_WORD_STEPS + int(rng.integers(0, 3))
            position = self._speak(world.WELCOME, start) + int(rng.integers(4, 25))
        else:
            position = int(rng.integers(3, 21))
        while position < self.steps:
            heard = self._next_heard()
            if heard.kind == "backchannel":
                # Between turns, it wants nothing from the agent.
                position = self._hear(heard, position) + int(rng.integers(10, 25))
            else:
                position = self._exchange(heard, position) + int(rng.integers(4, 25))
        return self.out

    def _exchange(self, heard: Heard, onset: int) -> int:
        """A question and its answer, with whatever happens during it; returns the step after it."""
        habits, rng = self.habits, self.rng
        end = self._hear(heard, onset)
        gap = int(rng.choice(len(habits.answer_gap), p=habits.answer_gap))
        start = end + 1 + gap
        text = self.composer.owed[heard.text]
        answer = self.composer.answers[text]
        if rng.random() < habits.goes_on:
            more = self._next_heard()
            if more.kind != "backchannel":
                return self._talk_over(text, start, more, end + int(rng.integers(2, 9)))
        self._label_answer(text, end, start)
        chance = rng.random() if answer.steps >= habits.long_answer else 1.0
        if chance < habits.barge_in:
            interruption = self._next_heard(stop=rng.random() < habits.barge_in_stop)
            if interruption.kind != "backchannel":
                onset = start + int(rng.integers(3, answer.steps - 6))
                return self._talk_over(text, start, interruption, onset)
        stop = self._speak(text, start)
        if chance > 1 - habits.backchannel or chance < habits.barge_in:
            self._backchannel(start, stop)
        return stop

    def _talk_over(self, text: str, start: int, heard: Heard, onset: int) -> int:
        """An answer that the user talks over, or that is never begun; returns the step after it."""
        delay = int(self.rng.choice(len(self.habits.yield_steps), p=self.habits.yield_steps))
        if onset + delay > start:
            self._speak(text, start, until=onset + delay)
            self._note(onset, f"barge-in: {heard.text}")
        return self._exchange(heard, onset)

    def _backchannel(self, start: int, stop: int) -> None:
        found = [heard for heard in self.session.heard if heard.kind == "backchannel"]
        if found and stop - start > 14:
            heard = found[self.rng.integers(len(found))]
            onset = start + int(self.rng.integers(4, stop - start - 6))
            self._hear(heard, onset)

    def _next_heard(self, stop: bool = False) -> Heard:
        """The session's next utterance, or a ``stop`` if one is wanted and there."""
        if stop:
            stops = [heard for heard in self.session.heard if heard.kind == "stop"]
            if stops:
                return stops[self.rng.integers(len(stops))]
        paused = [heard for heard in self.session.heard if heard.pause]
        if paused and self.rng.random() < self.habits.pause:
            return paused[self.rng.integers(len(paused))]
        if not self.ready:
            self.ready = list(self.rng.permutation(len(self.session.heard)))
        return self.session.heard[self.ready.pop()]

    def _background(self, steps: int) -> np.ndarray:
        """The user's channel while nobody speaks: the session's start, then its gaps shuffled."""
        codes, heard = self.session.codes, self.session.heard
        parts, length = [codes[:, : LEAD_STEPS - 2]], LEAD_STEPS - 2
        gaps = [
            (before.end + AFTER_STEPS + 1, after.onset - 1)
            for before, after in itertools.pairwise(heard)
        ]
        while length < steps:
            start, stop = gaps[self.rng.integers(len(gaps))]
            parts.append(codes[:, start:stop])
            length += max(stop - start, 0)
        return np.concatenate(parts, 1)[:, :steps]

    def _hear(self, heard: Heard, onset: int) -> int:
        """Put an utterance on the user's channel; returns the step in which it ends."""
        codes = self.session.codes[:, heard.onset : heard.end + AFTER_STEPS + 1]
        length = min(codes.shape[1], self.steps - onset)
        if length <= 0:
            return onset
        self.out.codes[1 + CODEBOOKS :, onset : onset + length] = codes[:, :length]
        words = heard.text.replace("| ", "").split()
        ends = [onset + end - heard.onset for end in heard.word_ends]
        for word, start, stop in zip(words, ends, [*ends[1:], ends[-1] + 3], strict=True):
            number = self.composer.word_ids.get(word, NO_LABEL)
            self.out.heard_word[start + 1 : max(stop, start + 1) + 1] = number
        self._note(onset, f"user: {heard.text}")
        return ends[-1]

    def _speak(self, text: str, start: int, until: int | None = None) -> int:
        """Put an answer on the agent's channel, fading out from step ``until`` on if given.

        Returns the step after its last.
        """
        answer: Answer = self.composer.answers[text]
        codes, stop = answer.codes, start + answer.steps
        if until is not None and until < stop:
            index = max(until - start - FIRST_CUT, 0) // CUT_EVERY
            cut = FIRST_CUT + index * CUT_EVERY
            codes, stop = np.concatenate([codes[:, :cut], answer.cuts[index]], 1), start + cut
        length = min(codes.shape[1], self.steps - start)
        if length <= 0:
            return stop
        self.out.codes[1 : 1 + CODEBOOKS, start : start + length] = codes[:, :length]
        self._note(start, f"agent: {text}" + (" (cut)" if until is not None else ""))
        last = -1
        for word, step in zip(text.split(), answer.word_steps, strict=True):
            last = max(start + step, last + 1)
            if last >= min(stop, self.steps):
                break
            self._write_word(word, last)
        return stop

    def _write_word(self, word: str, step: int) -> None:
        """The word's piece at its first frame, and the mark that ends padding just before."""
        text = self.out.codes[0]
        text[step] = self.composer.pieces[word]
        if step and text[step - 1] == PADDING_ID:
            text[step - 1] = END_OF_PADDING_ID

    def _label_answer(self, text: str, end: int, start: int) -> None:
        self.out.answer[end : start + 2] = self.composer.answer_ids[text]

    def _note(self, step: int, what: str) -> None:
        if step < self.steps:
            self.out.notes.append((step, what))
