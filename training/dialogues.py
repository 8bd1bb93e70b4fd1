"""Two-channel dialogues, composed from encoded speech as training goes on.

Nothing is stored: ``Composer.dialogue`` lays a new dialogue each time, in codes. Who speaks when
follows the behaviour that the model should have:

- the agent answers a complete sentence of its world after one to three steps, and waits through
  pauses in it; after any other sentence it waits for more than a second, as that may go on;
- it speaks first when nobody has spoken for two seconds at the start;
- talked over by a question, it fades out four steps after the user's onset, then answers; now and
  then it is later, so that a yield that was missed can still come;
- when the user goes on just after a sentence, it drops that sentence's answer;
- it goes on through backchannels, and never answers one;
- sounds that are no speech change nothing, whenever they come;
- in most dialogues it hears the user as it does beside the barge-in network: while it speaks only
  somebody who wants the floor, whose first steps may be lost;
- told to, it says any words of its own, one after another, each always in the same way: they are
  given in its text, so that it learns to sound them and to time them, not to think of them.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece

from training import world
from training.bank import (
    LEAD_STEPS,
    Answer,
    Heard,
    Session,
    join,
    read_answers,
    read_session_file,
    session_paths,
)
from training.sizes import CODEBOOKS, END_OF_PADDING_ID, PADDING_ID
from training.tokenizer import WORD_START

FIRST_WORD_STEPS = 25  # two seconds of silence, then the agent opens the conversation
AFTER_STEPS = 4  # of a user's utterance: the last sound fades in the room
NO_LABEL = -100
NO_QUESTIONS = ("backchannel", "sound")
NO_AIM, QUESTION, BACKCHANNEL = 0, 1, 2
DECISIVE_STEPS = 2  # from the one at which the agent yields, or would if it were a question


@dataclass
class Habits:
    """How often things happen."""

    agent_opens: float = 0.2
    answer_gap: tuple[float, ...] = (0.0, 0.25, 0.45, 0.3)  # share of gaps of 0, 1, 2, 3 steps
    # Steps before it says that it does not know. At each later one it is likely that it begins:
    # where an end is hard to hear, none would be likely enough else, and it would never begin.
    unknown_gap: int = 13
    unknown_share: float = 0.7
    unknown_goes_on: float = 0.2  # the user speaks again within about that time
    goes_on: float = 0.1  # the user speaks again when the agent is about to, or has just begun
    barge_in: float = 0.54
    barge_in_stop: float = 0.35
    backchannel: float = 0.24
    pause: float = 0.25  # of questions that are picked for the pause in them
    yield_after: int = 4  # steps from the one of the user's onset to the first yields
    # Of those that have not yielded yet, at each step. Near 1, since the model hardly samples, and
    # there are many codes for a voice that fades, but one for a voice that goes on.
    yield_share: float = 0.95
    # So that one that was missed still comes: at each later step it is the likeliest again.
    yield_late: float = 0.12
    yield_late_share: float = 0.7
    long_answer: int = 16  # steps from which an answer can be talked over
    between_turns: float = 0.1  # share of backchannels, where the user has the floor
    sound: float = 0.6  # chance of a sound that is no speech during an answer without these two
    sound_between: float = 0.2  # and before a question
    told: float = 0.25  # chance of a told sentence before a question, and of another after it
    told_answer: float = 0.25  # share of answers among them, else new combinations
    told_story: float = 0.0  # share of stretches of the story: what it tells while a TTS speaks
    told_story_words: tuple[int, int] = (10, 40)
    told_instead: float = 0.06  # of the answers that are owed, a told sentence in their place
    told_barge_in: float = 0.15  # where it is long enough
    told_backchannel: float = 0.2  # of the others
    told_gap: tuple[int, ...] = (1, 2, 3, 8, 15)  # steps after it
    gated: float = 0.7  # of the dialogues: while the agent speaks, who wants no floor is not heard
    lost: tuple[float, ...] = (0.2, 0.35, 0.3, 0.15)  # share of barge-ins that lose 0 to 3 steps
    let_in: float = 0.15  # of backchannels and sounds: taken for somebody who wants the floor


@dataclass
class Dialogue:
    """One dialogue in steps.

    Attributes:
        codes: ``(17, steps)``: text, the agent's eight codebooks, the user's eight.
        heard_word: ``(steps,)``: the user's latest complete word, by number, while the user speaks;
            a label for training only.
        answer: ``(steps,)``: number of the owed answer, from the end of the question into the
            answer's first word; else ``NO_LABEL``. A label for training only.
        aim: ``(steps,)``: ``QUESTION`` or ``BACKCHANNEL`` while the user says one, from the step
            after its onset on, else ``NO_AIM``. A label for training only.
        given: ``(steps,)``: whether the text is what the agent is told to say.
        decisive: ``(steps,)``: whether it has to yield, or to go on, about now.
        notes: what happens when, for people and tests.
    """

    codes: np.ndarray
    heard_word: np.ndarray
    answer: np.ndarray
    aim: np.ndarray
    given: np.ndarray
    decisive: np.ndarray
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
        words, _ = read_answers(bank / "words.npz")
        self.words = {word.text: word for word in words}
        self.answer_ids = {text: number for number, text in enumerate(self.answers)}
        self.bank, self.users = bank, users
        self.known: set[Path] = set()
        self.sessions: list[Session] = []
        self.look_again()
        questions = world.exchanges() + world.more_outside_exchanges() + world.held_out_exchanges()
        self.owed = {exchange.question: exchange.answer for exchange in questions}
        self.word_ids = {word: number for number, word in enumerate(world.user_words(), start=1)}
        self.tokenizer = tokenizer
        self.pieces = {word: self._piece(word) for word in world.agent_words()}

    def look_again(self) -> None:
        """Read the sessions that have been made since."""
        for path in session_paths(self.bank, self.users):
            if path not in self.known:
                self.known.add(path)
                self.sessions += [s for s in read_session_file(path) if _has_questions(s)]

    def _piece(self, word: str) -> int:
        piece = self.tokenizer.piece_to_id(WORD_START + word)
        assert piece > PADDING_ID, f"{word!r} is not a piece"
        return piece

    def told(self, rng: np.random.Generator) -> Answer:
        """A sentence as the agent says it when it is told to: word by word."""
        chance = rng.random()
        if chance < self.habits.told_answer:
            text = str(rng.choice(list(self.answers)))
        elif chance < self.habits.told_answer + self.habits.told_story:
            text = self._stretch_of_the_story(rng)
        else:
            text = world.new_sentence(rng)
        return join([self.words[word] for word in text.split()])

    def _stretch_of_the_story(self, rng: np.random.Generator) -> str:
        story = world.STORY.split()
        first = int(rng.integers(len(story))) if rng.random() < 0.5 else 0
        count = int(rng.integers(*self.habits.told_story_words))
        return " ".join((3 * story)[first : first + count])

    def dialogue(self, steps: int, rng: np.random.Generator) -> Dialogue:
        """A dialogue of ``steps`` steps."""
        session = self.sessions[rng.integers(len(self.sessions))]
        return Layout(self, session, steps, rng).lay()


def _has_questions(session: Session) -> bool:
    return sum(heard.kind not in NO_QUESTIONS for heard in session.heard) >= 3


class Layout:
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
        heard_word, aim = np.zeros((2, steps), np.int64)
        given, decisive = np.zeros((2, steps), bool)
        answer = np.full(steps, NO_LABEL)
        self.out = Dialogue(codes, heard_word, answer, aim, given, decisive)
        self.questions = [heard for heard in session.heard if heard.kind not in NO_QUESTIONS]
        self.backchannels = [heard for heard in session.heard if heard.kind == "backchannel"]
        self.sounds = [heard for heard in session.heard if heard.kind == "sound"]
        self.ready: list[int] = []
        self.is_gated = rng.random() < self.habits.gated
        self.speaking, self.let_in = np.zeros((2, steps), bool)

    def lay(self) -> Dialogue:
        """Lay it from its first step to its last."""
        rng = self.rng
        if rng.random() < self.habits.agent_opens:
            start = FIRST_WORD_STEPS + int(rng.integers(0, 3))
            welcome = self.composer.answers[world.WELCOME]
            position = self._speak(welcome, start) + int(rng.integers(4, 25))
        else:
            position = int(rng.integers(3, 21))
        while position < self.steps:
            while rng.random() < self.habits.told:
                position = self._told(position)
            if self.sounds and rng.random() < self.habits.sound_between:
                position = self._sound_between(position)
            if rng.random() < self.habits.between_turns and self.backchannels:
                # Between turns, it wants nothing from the agent.
                heard = self.backchannels[rng.integers(len(self.backchannels))]
                position = self._hear(heard, position) + int(rng.integers(10, 25))
            else:
                position = self._exchange(self._next_question(), position)
                position += int(rng.integers(4, 25))
        if self.is_gated:
            self._gate()
        return self.out

    def _gate(self) -> None:
        """Silence on the user's channel where the agent speaks and nobody is let in."""
        unheard = self.speaking & ~self.let_in
        self.out.codes[1 + CODEBOOKS :, unheard] = self.composer.silence[:, None]
        for labels in (self.out.heard_word, self.out.aim):
            labels[unheard & (labels != 0)] = NO_LABEL

    def _exchange(self, heard: Heard, onset: int) -> int:
        """A question and its answer, with whatever happens during it; returns the step after it."""
        habits, rng = self.habits, self.rng
        end = self._hear(heard, onset)
        text = self.composer.owed.get(heard.text, world.UNKNOWN)
        unknown = text == world.UNKNOWN
        gap = self._unknown_gap() if unknown else self._answer_gap()
        start = end + 1 + gap
        if rng.random() < habits.told_instead:
            return self._speak(self.composer.told(rng), start, given=True)
        answer = self.composer.answers[text]
        if rng.random() < (habits.unknown_goes_on if unknown else habits.goes_on):
            onset = end + int(rng.integers(2, gap + 6 if unknown else 9))
            return self._talk_over(answer, start, self._next_question(), onset)
        self._label_answer(text, end, start)
        chance = rng.random() if answer.steps >= habits.long_answer else 1.0
        if chance < habits.barge_in:
            interruption = self._next_question(stop=rng.random() < habits.barge_in_stop)
            onset = start + int(rng.integers(3, answer.steps - 6))
            return self._talk_over(answer, start, interruption, onset)
        stop = self._speak(answer, start)
        if chance < habits.barge_in + habits.backchannel:
            self._backchannel(start, stop)
        elif rng.random() < habits.sound:
            stop = self._sound(start, stop)
        return stop

    def _unknown_gap(self) -> int:
        return self.habits.unknown_gap - 1 + int(self.rng.geometric(self.habits.unknown_share))

    def _answer_gap(self) -> int:
        return int(self.rng.choice(len(self.habits.answer_gap), p=self.habits.answer_gap))

    def _told(self, start: int) -> int:
        """A sentence that nobody asked for; returns the step after it and after what it led to."""
        habits, rng = self.habits, self.rng
        told = self.composer.told(rng)
        cut = int(rng.choice(told.cut_steps))
        heard = self._next_question(stop=rng.random() < habits.barge_in_stop)
        delay = self._yield_delay(heard)
        if rng.random() < habits.told_barge_in and cut > delay:
            self._speak(told, start, until=start + cut, given=True)
            self._decide(start + cut)
            stop = self._exchange(heard, start + cut - delay)
            return stop + int(rng.integers(4, 25))
        stop = self._speak(told, start, given=True)
        if rng.random() < habits.told_backchannel:
            self._backchannel(start, stop)
        elif rng.random() < habits.sound:
            stop = self._sound(start, stop)
        return stop + int(rng.choice(habits.told_gap))

    def _talk_over(self, answer: Answer, start: int, heard: Heard, onset: int) -> int:
        """An answer that the user talks over, or that is never begun; returns the step after it."""
        until = onset + self._yield_delay(heard)
        if until > start:
            self._speak(answer, start, until=until)
            self._decide(until)
            self._note(onset, f"barge-in: {heard.text}")
        return self._exchange(heard, onset)

    def _yield_delay(self, heard: Heard) -> int:
        """Steps from the user's onset to the first in which the agent fades out."""
        habits, length = self.habits, heard.end - heard.onset
        late = self.rng.random() < habits.yield_late
        share = habits.yield_late_share if late else habits.yield_share
        delay = habits.yield_after - 1 + late + int(self.rng.geometric(share))
        return min(delay, max(length, habits.yield_after))

    def _backchannel(self, start: int, stop: int) -> None:
        if self.backchannels and stop - start > 14:
            heard = self.backchannels[self.rng.integers(len(self.backchannels))]
            onset = start + int(self.rng.integers(4, stop - start - 6))
            self._hear(heard, onset)
            self._decide(onset + self.habits.yield_after)

    def _sound(self, start: int, stop: int) -> int:
        """A sound during an answer; returns the step after both."""
        if not self.sounds or stop - start < 8:
            return stop
        heard = self.sounds[self.rng.integers(len(self.sounds))]
        onset = start + int(self.rng.integers(0, stop - start - self.habits.yield_after))
        end = self._hear(heard, onset)
        self._decide(onset + self.habits.yield_after)
        return max(stop, end)

    def _sound_between(self, position: int) -> int:
        """A sound while nobody speaks; returns the step at which somebody may."""
        heard = self.sounds[self.rng.integers(len(self.sounds))]
        end = self._hear(heard, position)
        self._decide(end + 2)  # where an answer would begin, had it been a question
        return end + int(self.rng.integers(4, 25))

    def _decide(self, step: int) -> None:
        self.out.decisive[step : step + DECISIVE_STEPS] = True

    def _next_question(self, stop: bool = False) -> Heard:
        """The session's next question, or a ``stop`` if one is wanted and there."""
        questions = self.questions
        if stop:
            stops = [heard for heard in questions if heard.kind == "stop"]
            if stops:
                return stops[self.rng.integers(len(stops))]
        paused = [heard for heard in questions if heard.pause]
        if paused and self.rng.random() < self.habits.pause:
            return paused[self.rng.integers(len(paused))]
        if not self.ready:
            self.ready = list(self.rng.permutation(len(questions)))
        return questions[self.ready.pop()]

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
        if onset >= self.steps:
            return onset
        self._place(heard, onset)
        self._let_in(heard, onset)
        words = heard.text.replace("| ", "").split()
        ends = [onset + end - heard.onset for end in heard.word_ends]
        for word, start, stop in zip(words, ends, [*ends[1:], ends[-1] + 3], strict=True):
            number = self.composer.word_ids.get(word, NO_LABEL)
            self.out.heard_word[start + 1 : max(stop, start + 1) + 1] = number
        if heard.kind != "sound":
            aim = BACKCHANNEL if heard.kind == "backchannel" else QUESTION
            self.out.aim[onset + 1 : ends[-1] + 1] = aim
        self._note(onset, f"user: {heard.text}")
        return ends[-1]

    def _let_in(self, heard: Heard, onset: int) -> None:
        """What of an utterance would be heard while the agent speaks."""
        habits, rng = self.habits, self.rng
        if heard.kind in NO_QUESTIONS and rng.random() >= habits.let_in:
            return
        lost = int(rng.choice(len(habits.lost), p=habits.lost)) if self.speaking[onset] else 0
        self.let_in[onset + lost : onset + heard.end - heard.onset + 2] = True

    def _place(self, heard: Heard, onset: int) -> None:
        """The utterance's codes, and those of the room after it."""
        codes = self.session.codes[:, heard.onset : heard.end + AFTER_STEPS + 1]
        length = min(codes.shape[1], self.steps - onset)
        self.out.codes[1 + CODEBOOKS :, onset : onset + length] = codes[:, :length]

    def _speak(
        self, answer: Answer, start: int, until: int | None = None, given: bool = False
    ) -> int:
        """Put an answer on the agent's channel, fading out from step ``until`` on if given.

        Returns the step after its last.
        """
        codes, stop = answer.codes, start + answer.steps
        if until is not None and until < stop:
            index = int(np.searchsorted(answer.cut_steps, until - start, "right")) - 1
            index = max(index, 0)
            codes, stop = answer.faded(index), start + answer.cut_steps[index]
        self.speaking[start:stop] = True
        self._sound_answer(answer, start, stop)
        length = min(codes.shape[1], self.steps - start)
        if length <= 0:
            return stop
        self.out.codes[1 : 1 + CODEBOOKS, start : start + length] = codes[:, :length]
        note = ("told: " if given else "agent: ") + answer.text
        self._note(start, note + (" (cut)" if until is not None else ""))
        last = -1
        for word, step in zip(answer.text.split(), answer.word_steps, strict=True):
            first, last = last < 0, max(start + step, last + 1)
            if last >= min(stop, self.steps):
                break
            self._write_word(word, last)
            if given:
                # That it speaks is given at the first word, when it speaks on is not.
                self.out.given[last - first : last + 1] = True
        return stop

    def _sound_answer(self, answer: Answer, start: int, stop: int) -> None:
        """For layouts that need the agent's sound, too."""

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
