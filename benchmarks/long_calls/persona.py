"""How much of a persona is left: two roles before the same conversation, window after window.

The conversation's tokens are given, so that it is the same in both. What differs then in the output
of the language model is the persona's doing alone. That says whether the model still sees it, and
not whether it understands it: only a model that was trained with personas does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipecat_duplex.engine.long_calls import Limits
from pipecat_duplex.engine.onnx import load_model
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.persona import Casting, Persona, wrap_role
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

ROLES = ("hello i can help you", "no i do not know that")


class Left(NamedTuple):
    """What two personas make of the same moment.

    Attributes:
        way: ``ring`` or ``rebuild``.
        steps: Steps of the conversation before it.
        difference: Between the two outputs of the language model, beside their mean size.
    """

    way: str
    steps: int
    difference: float


def persona_left(checkpoint: str, codes: np.ndarray, moments: Sequence[int]) -> list[Left]:
    """Return how far two personas are told apart at some moments of a conversation.

    Args:
        checkpoint: With graphs.
        codes: The conversation, shape ``(17, steps)``.
        moments: Steps of it that are behind each moment.
    """
    model = load_model(checkpoint, 1)
    limits = Limits.of(model.summary.context_steps)
    casting = Casting()
    personas = [_frames(model, casting, role) for role in ROLES]
    left = []
    for way in ("ring", "rebuild"):
        for steps in moments:
            outputs = []
            for persona in personas:
                said = codes[:, :steps]
                if way == "rebuild" and persona.shape[1] + steps > limits.silent:
                    said = said[:, -limits.last_steps(persona) :]
                outputs.append(_output(model, np.concatenate([persona, said], axis=1)))
            size = np.mean([np.linalg.norm(output) for output in outputs])
            left.append(Left(way, steps, float(np.linalg.norm(outputs[0] - outputs[1]) / size)))
    return left


def converse(checkpoint: str, user_pcm: np.ndarray) -> np.ndarray:
    """Let a model hear a user, and return both sides' tokens, shape ``(17, steps)``.

    Args:
        checkpoint: With graphs.
        user_pcm: Float32, 24 kHz, at least two steps.
    """
    model = load_model(checkpoint, 1)
    model.join(0, SessionConfig.greedy())
    steps = user_pcm[: len(user_pcm) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
    outputs = [model.step({0: pcm})[0] for pcm in steps]
    return np.stack([output.tokens for output in outputs[1:]], axis=1)  # the first has none


def _frames(model: OnnxModel, casting: Casting, role: str) -> np.ndarray:
    tokens = tuple(model.vocabulary.tokens(wrap_role(role)))
    parts = casting.frames(Persona(tokens), model.encode_parts)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def _output(model: OnnxModel, codes: np.ndarray) -> np.ndarray:
    """What the language model gives out after these frames, shape ``(dim,)``."""
    model.join(0, SessionConfig.greedy())
    for _ in model.prefill(0, Prefix(codes), lambda: True):
        pass
    return model._lanes[0]._temporal.outputs["hidden"][0].ravel().copy()
