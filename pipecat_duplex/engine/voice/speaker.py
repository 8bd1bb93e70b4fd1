"""Words in the voice of a TTS, while the model believes that it speaks and keeps the floor.

The model tells a story meanwhile that nobody hears: it *mimes*, and hears the user. Where its
story falls silent under the user's voice, it has given up the floor, and so the voice stops. See
:mod:`pipecat_duplex.conversation.mime`.
"""

import threading
from collections import deque
from dataclasses import replace

import numpy as np

from pipecat_duplex.conversation.mime import Mime
from pipecat_duplex.engine.speech import (
    FADE_SAMPLES,
    FALLING,
    Speaker,
    SpelledWord,
    SpokenStep,
    Utterance,
)
from pipecat_duplex.engine.voice.narration import NarratedStep, Narration, Speaks
from pipecat_duplex.session import (
    STEP_SAMPLES,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    TEXT_VOICED,
    WORD_START,
    Said,
    Step,
)

MIME_STOP_STEPS = 1
"""Silence of the story under the user's voice that is a yield."""

PAUSE_STEPS = 6
"""How long the voice may have no words before the model stops telling its story (0.48 s)."""

_STORY = 0


class VoicedSpeaker(Speaker):
    """Says what was queued with a TTS, in place of a :class:`Speaker`.

    Words that the model has by itself are heard in its own voice; its story is not heard.

    Thread-safe, as a :class:`Speaker` is.
    """

    def __init__(self, speaks: Speaks, story: tuple[SpelledWord, ...], session_id: str):
        """Initialize with nothing to say.

        Args:
            speaks: Who speaks.
            story: What the model tells meanwhile.
            session_id: For the log.
        """
        super().__init__()
        self._voice_lock = threading.RLock()
        self._speaks = speaks
        self._story = story
        self._session_id = session_id
        self._mime = Mime(MIME_STOP_STEPS)
        self._narrations: deque[Narration] = deque()
        self._narration: Narration | None = None
        self._voice_cuts_in = False
        self._own_is_held = False
        self._is_muted = False
        self._stalled_steps = 0
        self._fading: np.ndarray | None = None
        self._told: list[Said] = []

    @property
    def is_active(self) -> bool:
        """Whether :meth:`choose` has anything to decide."""
        return super().is_active or self._narration is not None or bool(self._narrations)

    @property
    def waiting(self) -> int:
        """Utterances that have not begun."""
        return len(self._narrations)

    @property
    def untold(self) -> int:
        """Utterances that have ended, which no step has told yet."""
        return len(self._told)

    @property
    def silent_steps(self) -> int:
        """For how many steps neither side has spoken."""
        return 0 if self._narration is not None else super().silent_steps

    def say(self, utterance: Utterance, *, cut_in: bool = False) -> None:
        """Queue an utterance; see :class:`Speaker`. With ``cut_in`` the voice begins at once."""
        with self._voice_lock:
            if cut_in:
                self._drop_narrations()
                self._voice_cuts_in = True
            narration = Narration(utterance, self._speaks, self._session_id)
            narration.advance()
            self._narrations.append(narration)

    def say_more(
        self,
        utterance_id: int,
        words: tuple[SpelledWord, ...],
        *,
        more: bool,
        unsayable: tuple[str, ...] = (),
    ) -> bool:
        """Add to an utterance that was begun with ``more``; see :class:`Speaker`."""
        with self._voice_lock:
            for narration in (self._narration, *self._narrations):
                if narration is None or narration.utterance.id != utterance_id:
                    continue
                if not narration.utterance.more:
                    break
                narration.utterance.add(words, more=more, unsayable=unsayable)
                narration.advance()
                return True
            return False

    def hold(self, held: bool) -> None:
        """Keep the model's own words back, or no longer."""
        with self._voice_lock:
            self._own_is_held = held
            super().hold(held or self._narration is not None)

    def hush(self) -> None:
        """Drop what is being said, and what is queued."""
        with self._voice_lock:
            self._drop_narrations()

    def close(self) -> None:
        """Say nothing more: the session is over."""
        with self._voice_lock:
            self._narrations.clear()
            self._narration = None

    @property
    def is_heard(self) -> bool:
        """Whether the agent's voice sounds: the TTS's, or the model's own."""
        return self._mime.is_on or (super().is_heard and not self._is_muted)

    def give_way(self) -> None:
        """Fall silent, and let the model do so; see :class:`Speaker`."""
        with self._voice_lock:
            self._drop_narrations()
            super().give_way()

    def choose(self, sampled: int) -> int:
        """Choose the monologue token of a step; see :class:`Speaker`."""
        with self._voice_lock:
            self._begin_narration()
            token = super().choose(sampled)
            is_word = token not in (TEXT_PADDING, TEXT_END_OF_PADDING)
            if is_word and self._narration is None and not self.has_words:
                self._is_muted = False  # its own
            return token

    def take_spoken(self) -> SpokenStep:
        """Return what is known of the token chosen last; see :class:`Speaker`."""
        with self._voice_lock:
            return SpokenStep(wish=super().take_spoken().wish and self._narration is None)

    def observe(self, text_token: int, agent_level_db: float, user_level_db: float) -> None:
        """Take note of a step that was computed, whether or not the model's sound is heard."""
        with self._voice_lock:
            super().observe(text_token, agent_level_db, user_level_db)
            if self._mime.step(agent_level_db=agent_level_db, user_level_db=user_level_db):
                self._drop_narrations()
            elif self._mime.is_on and not self.has_words and not self._mime.over_steps:
                self._tell_story()  # again
            if self._narration is None and self.is_quiet:
                self._is_muted = False

    def sound(self, step: Step) -> Step:
        """Return what is heard of a step: the voice, silence, or the model's own sound."""
        with self._voice_lock:
            was_muted = self._is_muted
            narrated = self._narrate()
            number = self._narration.utterance.id if self._narration is not None else None
            if self._narration is not None and self._narration.is_over:
                self._finish_narration(self._narration)
            said, self._told = tuple(self._told), []
            if narrated is None and not self._is_muted:
                step = super().sound(step)
                return replace(step, said=said) if said else step
            pcm = narrated.pcm if narrated is not None else np.zeros(STEP_SAMPLES, np.float32)
            if not was_muted:
                pcm[:FADE_SAMPLES] += step.pcm[:FADE_SAMPLES] * FALLING
            word = narrated.word if narrated is not None else None
            return replace(
                step,
                pcm=pcm,
                text_token=TEXT_VOICED if word else TEXT_PADDING,
                text_piece=f"{WORD_START}{word}" if word else None,
                utterance_id=number if word else None,
                said=said,
            )

    def _begin_narration(self) -> None:
        ready = next((each for each in self._narrations if each.utterance.can_begin), None)
        if self._narration is not None or ready is None:
            return
        if not (self.is_quiet or self._is_muted or self._voice_cuts_in):
            return
        self._narrations.remove(ready)
        self._narration = ready
        self._voice_cuts_in = False
        super().hold(True)

    def _narrate(self) -> NarratedStep | None:
        """Take a step of the voice; ``None`` where it is silent."""
        fading, self._fading = self._fading, None
        if self._narration is None:
            return None if fading is None else NarratedStep(fading, None)
        self._narration.advance()
        narrated = self._narration.step()
        self._stalled_steps = 0 if narrated is not None else self._stalled_steps + 1
        if narrated is not None and not self._mime.is_on:
            self._is_muted = True
            self._mime.begin()
            self._tell_story()
        elif self._stalled_steps == PAUSE_STEPS:
            self._stop_story()
        return narrated

    def _finish_narration(self, narration: Narration) -> None:
        self._told.append(narration.ended())
        self._narration = None
        self._stop_story()
        super().hold(self._own_is_held)

    def _tell_story(self) -> None:
        super().say(Utterance(_STORY, self._story), cut_in=True)

    def _stop_story(self) -> None:
        self._mime.end()
        super().hush()

    def _drop_narrations(self) -> None:
        if self._narration is not None:
            self._fading = self._narration.fade_out()
            self._finish_narration(self._narration)
        self._told += [narration.ended() for narration in self._narrations]
        self._narrations.clear()
        self._voice_cuts_in = False
