"""A step that failed, taken again without the conversations that it fails for."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipecat_duplex.engine.model import (
    NONE_HEARD,
    NONE_KNOWN,
    ChooseWord,
    KnownTokens,
    PhoneCodes,
    SlotOutput,
    StepModel,
)
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

SILENCE = np.zeros(STEP_SAMPLES, np.float32)


def options_of(slots: Iterable[int], known: KnownTokens, phone_codes: PhoneCodes) -> dict[str, Any]:
    """Return what a step of these slots is told beside their frames, as arguments of ``step``."""
    told = {
        "known": {slot: known[slot] for slot in slots if slot in known},
        "phone_codes": {slot: phone_codes[slot] for slot in slots if slot in phone_codes},
    }
    return {name: of_these for name, of_these in told.items() if of_these}


class PartialStep(NamedTuple):
    """What came of a step that failed as a whole.

    Parameters:
        outputs: By slot, for the conversations that the step went well for.
        faults: By slot, what it raised for the others. Their slots are in no defined state.
    """

    outputs: dict[int, SlotOutput]
    faults: dict[int, Exception]


def step_apart(
    model: StepModel,
    frames: Mapping[int, np.ndarray],
    choose_word: ChooseWord | None,
    known: KnownTokens = NONE_KNOWN,
    phone_codes: PhoneCodes = NONE_HEARD,
) -> PartialStep:
    """Take a step again that has failed and was undone, in ever smaller parts.

    A fault that does not come back costs nobody anything. One that stays is found by halving: each
    conversation that a step fails for when it runs alone is at fault, unless the model fails for
    silence in its slot as well.

    Args:
        model: The model, as it was before the step.
        frames: The user's audio by slot.
        choose_word: As in ``StepModel.step``; it is asked again and must repeat itself.
        known: As in ``StepModel.step``.
        phone_codes: As in ``StepModel.step``.

    Raises:
        Exception: What the model raises for any conversation: none of them is at fault.
    """
    outputs: dict[int, SlotOutput] = {}
    faults: dict[int, Exception] = {}
    model_works = False
    parts = [list(frames)] if len(frames) == 1 else _halves(list(frames))
    while parts:
        slots = parts.pop()
        try:
            options = options_of(slots, known, phone_codes)
            outputs |= model.step({slot: frames[slot] for slot in slots}, choose_word, **options)
        except Exception as error:
            model.undo()
            if len(slots) > 1:
                parts += _halves(slots)
                continue
            faults[slots[0]] = error
            if not model_works:
                _check_works(model, slots[0])
        else:
            model.keep()
        model_works = True
    return PartialStep(outputs, faults)


def _check_works(model: StepModel, slot: int) -> None:
    """Raise what the model raises for silence, in a slot whose conversation is over."""
    model.join(slot, SessionConfig.greedy())
    for _ in range(model.warm_up_steps):
        model.step({slot: SILENCE})
    model.keep()


def _halves(slots: list[int]) -> list[list[int]]:
    middle = len(slots) // 2
    return [slots[:middle], slots[middle:]]
