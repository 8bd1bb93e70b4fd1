"""The settings of the service."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Self

from pipecat.services.settings import LLMSettings
from pipecat.utils.types import NOT_GIVEN, NotGiven, assert_given, is_given

from pipecat_duplex.session import SessionConfig

_NUMBER, _WHOLE, _TEXT = (Real, "a number"), (Integral, "a whole number"), (str, "text")

_TYPES = {
    "model": _TEXT,
    "system_instruction": _TEXT,
    "seed": _WHOLE,
    "text_temperature": _NUMBER,
    "text_top_k": _WHOLE,
    "audio_temperature": _NUMBER,
    "audio_top_k": _WHOLE,
    "max_session_secs": _NUMBER,
    "greeting": _TEXT,
    "text_prompt": _TEXT,
    "voice_prompt": _TEXT,
    "words": _TEXT,
    "voice": _TEXT,
    "filler": ((str, list, tuple), "text, or a list of texts"),
    "filler_after_ms": _NUMBER,
}

WORDS = ("own", "given", "both")
VOICES = ("own", "tts")

DEFAULT_FILLER_AFTER_MS = 500.0


@dataclass
class DuplexLLMSettings(LLMSettings):
    """Settings for DuplexLLMService. A change takes effect with the next session.

    Sampling that is ``None`` takes the checkpoint's own values. ``model`` selects the checkpoint,
    as the service's argument does.

    Parameters:
        text_temperature: Sampling temperature of the monologue; 0 is greedy.
        text_top_k: The monologue samples among this many most likely tokens.
        audio_temperature: Sampling temperature of the agent's audio; 0 is greedy.
        audio_top_k: Each audio codebook samples among this many most likely entries.
        max_session_secs: The session ends after this much audio. ``None`` is no limit.
        greeting: Words that the agent says first, once somebody listens.
        text_prompt: Who the agent is, for models that were trained to take a role.
        voice_prompt: The agent's voice, by its key on the server or in the engine's folder.
        words: Whose words the agent says, at once also in mid-call: ``own``, those of the model;
            ``given``, those of an LLM upstream and of ``say``, while the model only keeps the
            floor; or ``both``. ``None`` is ``given`` behind an LLM, else ``own``.
        voice: Who speaks, at once also in mid-call: ``own``, the model; or ``tts``, any TTS service
            of Pipecat behind this one, in its own voice and with any words, while the model decides
            when it speaks and when it stops; the words are then ``given``. ``None`` is ``tts``
            where the words are given and a TTS stands behind the service, else ``own``.
        filler: What the agent says while the LLM thinks; of several, the next one each time.
        filler_after_ms: After this much silence behind the user's turn.
    """

    text_temperature: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    text_top_k: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    audio_temperature: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    audio_top_k: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    max_session_secs: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    greeting: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    text_prompt: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    voice_prompt: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    words: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    voice: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    filler: str | Sequence[str] | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    filler_after_ms: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)

    def __post_init__(self):
        """Check types.

        Raises:
            TypeError: A setting has the wrong type.
        """
        for name, (kind, words) in _TYPES.items():
            value = getattr(self, name)
            if not is_given(value) or value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"the setting {name} must be {words}, not {value!r}")
            if kind in (Integral, Real):
                setattr(self, name, int(value) if kind is Integral else float(value))

    @classmethod
    def defaults(cls, checkpoint: str) -> Self:
        """Return settings with nothing left open.

        Args:
            checkpoint: The model's name.
        """
        defaults = SessionConfig()
        return cls(
            model=checkpoint,
            system_instruction=None,
            temperature=None,
            max_tokens=None,
            top_p=None,
            top_k=None,
            frequency_penalty=None,
            presence_penalty=None,
            seed=None,
            filter_incomplete_user_turns=False,
            user_turn_completion_config=None,
            text_temperature=defaults.text_temperature,
            text_top_k=defaults.text_top_k,
            audio_temperature=defaults.audio_temperature,
            audio_top_k=defaults.audio_top_k,
            max_session_secs=defaults.max_secs,
            greeting=None,
            text_prompt=None,
            voice_prompt=None,
            words=None,
            voice=None,
            filler=None,
            filler_after_ms=DEFAULT_FILLER_AFTER_MS,
        )

    def check_words(self) -> None:
        """Check who gives the words, and the filler.

        Raises:
            ValueError: A value is out of range.
        """
        words = self.words
        if is_given(words) and words is not None and words not in WORDS:
            raise ValueError(f"the setting words must be one of {', '.join(WORDS)}, not {words!r}")
        voice = self.voice
        if is_given(voice) and voice is not None and voice not in VOICES:
            raise ValueError(f"the setting voice must be one of {', '.join(VOICES)}, not {voice!r}")
        if voice == "tts" and words in ("own", "both"):
            raise ValueError(
                f"a TTS speaks given words: the settings voice='tts' and words={words!r} "
                "contradict each other"
            )
        after_ms = self.filler_after_ms
        if is_given(after_ms) and after_ms is not None and not 0 <= after_ms <= 60_000:
            raise ValueError(f"the setting filler_after_ms must be 0 to 60000, not {after_ms:g}")
        filler = self.filler
        if is_given(filler) and filler is not None and not isinstance(filler, str):
            if not all(isinstance(each, str) for each in filler):
                raise ValueError("the setting filler must be text, or a list of texts")

    def session_config(self) -> SessionConfig:
        """Return what they ask of a session.

        Raises:
            ValueError: A value is out of range.
        """
        return SessionConfig(
            text_temperature=assert_given(self.text_temperature),
            text_top_k=assert_given(self.text_top_k),
            audio_temperature=assert_given(self.audio_temperature),
            audio_top_k=assert_given(self.audio_top_k),
            seed=assert_given(self.seed),
            max_secs=assert_given(self.max_session_secs),
            text_prompt=assert_given(self.text_prompt),
            voice_prompt=assert_given(self.voice_prompt),
        )
