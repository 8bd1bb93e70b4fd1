"""The interface between the engine and a model, on any runtime."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from pipecat_duplex.engine.ears import Recognizer
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import STEP_SAMPLES, TEXT_PADDING, Sampling, SessionConfig

UNGENERATED = -2
"""Token of a step that the acoustic delay has not reached yet."""

MIN_TEMPERATURE = 1e-4
"""Below this, a sampling temperature is greedy: its scores would leave the range of float32."""

T = TypeVar("T")

Parts = Generator[None, None, T]
"""Work done in parts of some milliseconds, one at each ``next``; it returns the result."""

KnownTokens = Mapping[int, np.ndarray]
"""By slot, what a step gives that was taken elsewhere: monologue and agent, int, from the first."""

NONE_KNOWN: KnownTokens = MappingProxyType({})

PhoneCodes = Mapping[int, int]
"""By slot, the code of the user's first codebook, heard beside the codec."""

NONE_HEARD: PhoneCodes = MappingProxyType({})

ChooseWord = Callable[[int, int], int]
"""From a slot and the text token that was sampled in it to the token that the agent says."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """A description of the recogniser that hears the user's words beside the model.

    Parameters:
        name: The name under which it was requested.
        parameters: Parameters of its language model.
        codebooks: How many of the user's codebooks it hears.
        delay_steps: Steps by which its words are behind the voice.
        kv_bytes_per_slot: Attention memory of one conversation.
    """

    name: str
    parameters: int
    codebooks: int
    delay_steps: int
    kv_bytes_per_slot: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A description of the loaded model, for logs and for people.

    Parameters:
        name: The name under which it was requested.
        trained: False if the weights are random, so that the agent babbles.
        lm_parameters: Parameters of the language model.
        mimi_parameters: Parameters of the codec.
        context_steps: Steps that the language model can look back on.
        runtime: What runs it, ``onnx`` or ``torch``.
        device: Where it runs, in torch's words.
        dtype: Number format of the language model; the codec is always float32.
        quantization: How its weights are kept, ``int8`` or ``int4``; ``None`` is in full.
        hearing: What recognises the user's words, if anything does.
        kv_bytes_per_slot: Attention memory of one conversation.
        sampling: How it recommends to sample.
        fingerprint: Tells checkpoints apart.
        text_tokens: Tokens of the monologue.
        audio_tokens: Entries of a codebook.
    """

    name: str
    trained: bool
    lm_parameters: int
    mimi_parameters: int
    context_steps: int
    runtime: str
    device: str
    dtype: str
    kv_bytes_per_slot: int
    sampling: Sampling
    fingerprint: str
    text_tokens: int
    audio_tokens: int
    quantization: str | None = None
    hearing: Hearing | None = None


class Loaded(NamedTuple):
    """The part of the model that other threads may use.

    Parameters:
        summary: What was loaded.
        vocabulary: What its monologue is made of.
    """

    summary: ModelSummary
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class SlotOutput:
    """The output of one slot in one step.

    Parameters:
        tokens: Int32, shape ``(1 + 2 * codebooks,)``: the monologue, the agent's audio, and the
            user's audio of this step.
        pcm: Agent audio, float32 in [-1, 1], shape ``(STEP_SAMPLES,)``.
        sound: The user's codes for a recogniser, int, shape ``(its codebooks,)``. ``None`` without
            one, and in a conversation's first step: the codec begins afresh after it.
    """

    tokens: np.ndarray
    pcm: np.ndarray
    sound: np.ndarray | None = None

    @property
    def text_token(self) -> int:
        """Monologue token of the step."""
        return int(self.tokens[0])

    @property
    def is_silence(self) -> bool:
        """Whether the acoustic delay had not passed yet."""
        return int(self.tokens[1]) == UNGENERATED

    @classmethod
    def silence(cls, user_codes: np.ndarray) -> "SlotOutput":
        """Return what a conversation's first step gives, before the acoustic delay has passed.

        Args:
            user_codes: What the user's frame was encoded to, int, shape ``(codebooks,)``.
        """
        tokens = np.full(1 + 2 * len(user_codes), UNGENERATED, dtype=np.int32)
        tokens[0] = TEXT_PADDING
        tokens[1 + len(user_codes) :] = user_codes
        return cls(tokens, np.zeros(STEP_SAMPLES, dtype=np.float32))


class StepModel(Protocol):
    """Codec and language model over a number of slots; conversations join and leave between steps.

    A conversation's tokens depend on what was said in it, on its settings and its seed, and not on
    its neighbours. Not thread-safe: used by one thread, within ``running()``.
    """

    warm_up_steps: int
    slots: int
    summary: ModelSummary
    vocabulary: Vocabulary
    recognizer: Recognizer | None = None

    def running(self) -> AbstractContextManager[None]:
        """Prepare the calling thread; all else is called within. Leaving it frees memory."""
        ...

    def join(self, slot: int, config: SessionConfig) -> None:
        """Begin a conversation in a slot. An earlier conversation there is forgotten.

        Args:
            slot: From 0 to ``slots - 1``.
            config: Sampling settings and seed. The model ignores limits.
        """
        ...

    def encode_parts(self, audio: np.ndarray) -> Parts[np.ndarray]:
        """Encode audio by itself, in no slot; other slots may be stepped between two parts.

        Args:
            audio: Float32, shape ``(steps, STEP_SAMPLES)``, 24 kHz, at least one step.

        Returns:
            Codes, int, shape ``(codebooks, steps)``.
        """
        ...

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Encode audio as :meth:`encode_parts` does, all at once."""
        parts = self.encode_parts(audio)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return end.value

    def prefill(
        self, slot: int, prefix: Prefix, is_alone: Callable[[], bool] = lambda: False
    ) -> Parts[np.ndarray | None]:
        """Let a conversation that has just joined go on from what is known of it.

        The frames are written in parallel, a part at each ``next``; other slots may be stepped in
        between. The next token is then sampled from them, and the first step is the one after.

        Args:
            slot: The slot, after ``join`` and before its first step.
            prefix: What is known, at least two frames.
            is_alone: Whether nobody waits meanwhile, so that parts may be longer and fewer.

        Returns:
            The codes of the prefix's audio for the recogniser, int, shape ``(codebooks, steps)``;
            ``None`` without one.
        """
        ...

    def rebuild(self, slot: int, known: Callable[[], Prefix]) -> Iterator[None]:
        """Let a conversation's language model forget all but what is given, while it goes on.

        The frames are read beside the slot, a part of some milliseconds at each ``next``; the slot
        and others may be stepped in between. With the last part what was read takes the place of
        what the language model remembers: the next step reads its tokens with it. Codec, random
        numbers and the tokens sampled last stay as they are. Nothing happens to a slot if the
        iterator is dropped.

        Args:
            slot: The slot, whose conversation has begun.
            known: Returns what is to be remembered, at least two frames, whenever it is asked: the
                same beginning each time, and the frames of all steps that were taken since.
        """
        ...

    def leave(self, slot: int) -> None:
        """End the conversation in a slot."""
        ...

    def step(
        self,
        frames: Mapping[int, np.ndarray],
        choose_word: ChooseWord | None = None,
        known: KnownTokens = NONE_KNOWN,
        phone_codes: PhoneCodes = NONE_HEARD,
    ) -> dict[int, SlotOutput]:
        """Run one step for the slots that have a frame; the others do not notice.

        Args:
            frames: The user's audio by slot, float32, shape ``(STEP_SAMPLES,)``, 24 kHz.
            choose_word: Called for each of those slots once the text token is sampled, and before
                the agent's audio is; what it returns is said.
            known: Slots in which this step was taken elsewhere, after a ``prefill``: it gives these
                tokens, of streams that are at most one step late, and their sound.
            phone_codes: By slot, the code of the user's first codebook, where it was heard beside
                the codec; it takes the place of the codec's own.

        Returns:
            The output of each of those slots. A conversation's first step, before the acoustic
            delay has passed, gives silence and padding.

        Raises:
            Exception: The step failed; ``undo`` brings back what was before it.
        """
        ...

    def keep(self) -> None:
        """Make the last step final. The next call of ``step``, ``join`` or ``prefill`` does too."""
        ...

    def undo(self) -> None:
        """Bring every slot back to where it was before the last step, failed or not.

        The same frames then give the same tokens again. Nothing happens if that step is final.
        """
        ...

    def warm_up(self) -> None:
        """Run a few steps of silence, so that the first conversation does not pay for them."""
        silence = np.zeros(STEP_SAMPLES, dtype=np.float32)
        self.join(0, SessionConfig())
        for _ in range(self.warm_up_steps):
            self.step({0: silence})
        self.leave(0)

    def restart(self) -> None:
        """Build all state anew; every conversation is lost."""
        ...
