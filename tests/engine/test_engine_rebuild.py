"""The memory of a running language model, built anew: persona and last steps, nobody notices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.model import SlotOutput, StepModel
from pipecat_duplex.engine.onnx import model as onnx_model
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.engine.torch import model as torch_model
from pipecat_duplex.engine.torch.checkpoint import Checkpoint
from pipecat_duplex.session import SessionConfig
from tests.engine.scripted import noise
from tests.engine.test_engine_prefill import CONTEXT, Models, begin, random_codes, tokens_of

GREEDY = SessionConfig.greedy()
KEPT = 40
PERSONA = 23


@pytest.fixture
def make_model(
    runtime: Runtime, checkpoint: Checkpoint, checkpoint_folder: Path
) -> Iterator[Models]:
    """Models of a runtime over the one checkpoint."""
    models = Models(runtime, checkpoint, checkpoint_folder)
    with torch.inference_mode():
        yield models
        models.close()


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others step in between often."""
    monkeypatch.setattr(onnx_model, "REBUILD_COLUMNS", 8)
    monkeypatch.setattr(torch_model, "REBUILD_PASS_STEPS", 8)


class Call:
    """One conversation in a slot, with all that was said in it."""

    def __init__(self, model: StepModel, slot: int, audio: np.ndarray):
        self._model = model
        self._slot = slot
        self._audio = iter(audio)
        self.outputs: list[SlotOutput] = []
        model.join(slot, GREEDY)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            frame = next(self._audio)
            self.outputs.append(self._model.step({self._slot: frame})[self._slot])

    def frames(self, first: int) -> np.ndarray:
        """Codes from a step on, shape ``(17, n)``."""
        return tokens_of(self.outputs[first:]).T

    def rebuild(self, persona: np.ndarray, first: int, between: Callable[[], None]) -> None:
        def known() -> Prefix:
            return Prefix(np.concatenate([persona, self.frames(first)], axis=1))

        for _ in self._model.rebuild(self._slot, known):
            between()


@pytest.mark.parametrize("from_start", [True, False])
@pytest.mark.parametrize("steps_before", [60, 2 * CONTEXT + 31])
def test_a_rebuilt_conversation_goes_on_as_a_fresh_one_would(
    make_model: Models, checkpoint: Checkpoint, steps_before: int, from_start: bool
) -> None:
    audio = noise(steps_before + 60, seed=1)
    persona = random_codes(PERSONA, 2, checkpoint)
    first = steps_before - KEPT
    model = make_model(3)
    call = Call(model, 1, audio)
    call.step(steps_before)
    parts = 0

    def between() -> None:
        nonlocal parts
        parts += 1
        call.step()

    def known() -> Prefix:
        return Prefix(np.concatenate([persona, call.frames(first)], axis=1), from_start)

    for _ in model.rebuild(1, known):
        between()
    assert parts >= 3
    # What is sampled before the swap is said after it.
    call.step()
    so_far = len(call.outputs)
    call.step(30)
    fresh = make_model(1)
    codes = np.concatenate([persona, tokens_of(call.outputs[first:so_far]).T], axis=1)
    begin(fresh, 0, Prefix(codes, from_start, audio=audio[1:so_far]))
    rest = [fresh.step({0: frame})[0] for frame in audio[so_far : so_far + 30]]
    np.testing.assert_array_equal(tokens_of(call.outputs[so_far:]), tokens_of(rest))


def test_a_rebuild_changes_what_is_remembered(make_model: Models, checkpoint: Checkpoint) -> None:
    """The other tests would pass if nothing were remembered, or nothing rebuilt."""
    audio = noise(120, seed=3)
    model = make_model(1)
    spoken = []
    for seed in (None, 4, 5):
        call = Call(model, 0, audio)
        call.step(60)
        if seed is not None:
            persona = random_codes(PERSONA, seed, checkpoint)
            call.rebuild(persona, 20, lambda: None)
        call.step(60)
        spoken.append(tokens_of(call.outputs))
    for one, other in ((0, 1), (1, 2)):
        np.testing.assert_array_equal(spoken[one][:60], spoken[other][:60])
        assert (spoken[one][61:] != spoken[other][61:]).any()


@pytest.mark.parametrize("dropped", [False, True])
def test_neighbours_do_not_notice_and_a_dropped_rebuild_does_nothing(
    make_model: Models, checkpoint: Checkpoint, dropped: bool
) -> None:
    persona = random_codes(PERSONA, 6, checkpoint)
    audio = {slot: noise(CONTEXT + 40, seed=slot) for slot in range(3)}

    def talk(rebuilds: bool) -> list[list[SlotOutput]]:
        model = make_model(3)
        calls = [Call(model, slot, audio[slot]) for slot in range(3)]

        def step() -> None:
            outputs = model.step({slot: audio[slot][len(calls[0].outputs)] for slot in range(3)})
            for slot, call in enumerate(calls):
                call.outputs.append(outputs[slot])

        for _ in range(CONTEXT + 5):
            step()
        if rebuilds:

            def known() -> Prefix:
                return Prefix(np.concatenate([persona, calls[1].frames(70)], axis=1))

            parts = model.rebuild(1, known)
            for number, _ in enumerate(parts):
                step()
                if dropped and number == 2:
                    break
        while len(calls[0].outputs) < CONTEXT + 40:
            step()
        return [call.outputs for call in calls]

    calm, disturbed = talk(False), talk(True)
    for slot in range(3) if dropped else (0, 2):
        np.testing.assert_array_equal(tokens_of(disturbed[slot]), tokens_of(calm[slot]))
        for one, other in zip(disturbed[slot], calm[slot], strict=True):
            np.testing.assert_array_equal(one.pcm, other.pcm)
