"""What arithmetic says, before anything is run: a step reads every weight once."""

from dataclasses import dataclass

GIB = 2**30
STEP_MS = 80.0

RESERVE_BYTES = 4 * GIB
"""Left for the driver, activations, graphs and gaps of the allocator."""

QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}
"""Bytes of a weight: NF4 has a scale of 32 bits for each block of 64."""


@dataclass(frozen=True)
class Card:
    """A graphics card, by its data sheet.

    Parameters:
        name: As the driver spells it, or a part of that.
        memory_gib: Memory that a program finds.
        bandwidth_gb_s: Bandwidth of its memory, in 10^9 bytes a second.
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float


CARDS = (
    Card("H200", 139.0, 4800),
    Card("H100", 78.0, 3350),
    Card("A100", 79.0, 2039),
    Card("L40S", 45.0, 864),
    Card("RTX 5090", 31.8, 1792),
    Card("RTX 4090", 24.0, 1008),
    Card("RTX 3090", 24.0, 936),
    Card("L4", 22.5, 300),
    Card("RTX 4060 Ti", 16.0, 288),
    Card("T4", 15.0, 320),
)


@dataclass(frozen=True)
class Prediction:
    """What a model should do on a card.

    Parameters:
        weights_gib: Weights, codec and all.
        session_gib: Memory of one session at its full window.
        step_ms: A step of one session, if reading memory were all there is.
        callers: Sessions that fit, in memory and in time; 0 if not even one does.
        bound_by: ``memory`` or ``time``.
    """

    weights_gib: float
    session_gib: float
    step_ms: float
    callers: int
    bound_by: str


def predict(
    card: Card,
    *,
    lm_parameters: int,
    mimi_parameters: int,
    kv_bytes: int,
    quantization: str | None = None,
    memory_factor: float = 1.0,
) -> Prediction:
    """Predict what a model does on a card.

    Args:
        card: The card.
        lm_parameters: Parameters of the language model, in two bytes unless quantized.
        mimi_parameters: Parameters of the codec, in four bytes.
        kv_bytes: Memory of a session's keys and values, in the model's format.
        quantization: How the language model's weights are kept.
        memory_factor: 0.5 if keys and values are kept in eight bits.
    """
    weight_bytes = lm_parameters * QUANTIZED_BYTES.get(quantization or "", 2.0)
    weight_bytes += 4 * mimi_parameters
    session_bytes = kv_bytes * memory_factor
    bytes_per_ms = card.bandwidth_gb_s * 1e6
    room = card.memory_gib * GIB - weight_bytes - RESERVE_BYTES
    by_memory = int(max(0, room // session_bytes))
    by_time = int(max(0, (STEP_MS * bytes_per_ms - weight_bytes) // session_bytes))
    return Prediction(
        weights_gib=weight_bytes / GIB,
        session_gib=session_bytes / GIB,
        step_ms=weight_bytes / bytes_per_ms,
        callers=min(by_memory, by_time),
        bound_by="memory" if by_memory <= by_time else "time",
    )


def find_card(name: str, memory_bytes: int) -> Card | None:
    """Find a card by the name that its driver gives; ``None`` if its data sheet is not known."""
    for card in CARDS:
        if card.name.replace(" ", "") in name.replace(" ", ""):
            return Card(card.name, memory_bytes / GIB, card.bandwidth_gb_s)
    return None
