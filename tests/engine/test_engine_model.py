"""The batched model against moshi's own classes, and against itself alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from moshi.models import LMGen

from pipecat_duplex.engine.checkpoint import find_checkpoint
from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.model import SlotOutput, StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.torch.checkpoint import Checkpoint, open_with_moshi
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.session import STEP_SAMPLES, TEXT_PADDING, SessionConfig
from tests.engine.scripted import noise

CONTEXT = 100


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def make_model(runtime: Runtime, checkpoint: Checkpoint, checkpoint_folder: Path) -> Iterator:
    """Makes a model with so many slots; the one before is of no use from then on."""
    made: list[BatchedModel] = []

    def make(slots: int) -> StepModel:
        if runtime == "onnx":
            return load_onnx_model(checkpoint_folder, slots)
        close()
        made.append(BatchedModel(checkpoint, slots))
        return made[-1]

    def close() -> None:
        while made:
            made.pop()._streaming.close()

    yield make
    close()


def converse(model: StepModel, audio: np.ndarray, config: SessionConfig) -> list[SlotOutput]:
    model.join(0, config)
    return [model.step({0: frame})[0] for frame in audio]


def tokens_of(outputs: list[SlotOutput]) -> np.ndarray:
    return np.stack([output.tokens for output in outputs])


def pcm_of(outputs: list[SlotOutput]) -> np.ndarray:
    return np.stack([output.pcm for output in outputs])


@pytest.mark.slow
def test_greedy_equals_a_loop_of_moshi_calls(make_model, checkpoint_folder: Path) -> None:
    audio = noise(CONTEXT + 40, seed=1)
    ours = converse(make_model(1), audio, SessionConfig.greedy())

    info = open_with_moshi(find_checkpoint(checkpoint_folder))
    encoder, decoder = info.get_mimi(), info.get_mimi()
    lm_gen = LMGen(info.get_moshi(dtype=torch.float32), use_sampling=False)
    heard, tokens, pcm = [], [], []
    with encoder.streaming(1), decoder.streaming(1), lm_gen.streaming(1):
        for index, frame in enumerate(audio):
            codes = encoder.encode(torch.from_numpy(frame)[None, None])
            heard.append(codes[0, :, 0].numpy())
            if index == 0:
                encoder.reset_streaming()  # as moshi.server does
            out = lm_gen.step(codes)
            assert (out is None) == (index == 0)
            if out is not None:
                tokens.append(out[0, :, 0].numpy())
                pcm.append(decoder.decode(out[:, 1:])[0, 0].clamp(-1, 1).numpy())

    assert ours[0].text_token == TEXT_PADDING
    assert ours[0].pcm.shape == (STEP_SAMPLES,) and not ours[0].pcm.any()
    np.testing.assert_array_equal(tokens_of(ours[1:])[:, :9], np.stack(tokens))
    np.testing.assert_array_equal(tokens_of(ours)[:, 9:], np.stack(heard))
    np.testing.assert_allclose(pcm_of(ours[1:]), np.stack(pcm), atol=1e-6)


def test_what_is_said_depends_on_what_is_heard(make_model) -> None:
    """Otherwise the tests of isolation would prove nothing."""
    model = make_model(1)
    first, second = (
        tokens_of(converse(model, noise(30, seed), SessionConfig.greedy())) for seed in (1, 2)
    )
    assert (first[1:] != second[1:]).mean() > 0.5


def test_slot_is_clean_for_the_next_caller(make_model) -> None:
    model = make_model(1)
    audio = noise(20, seed=1)
    first = tokens_of(converse(model, audio, SessionConfig.greedy()))
    converse(model, noise(15, seed=2), SessionConfig(seed=3))
    np.testing.assert_array_equal(tokens_of(converse(model, audio, SessionConfig.greedy())), first)
    model.restart()
    np.testing.assert_array_equal(tokens_of(converse(model, audio, SessionConfig.greedy())), first)


def test_same_seed_same_words(make_model) -> None:
    model = make_model(1)
    audio = noise(30, seed=1)
    first, again, other = (
        tokens_of(converse(model, audio, SessionConfig(seed=seed))) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first[1:] != other[1:]).mean() > 0.3


@dataclass
class Caller:
    """Someone with something to say, and what they were told."""

    audio: np.ndarray
    config: SessionConfig
    outputs: list[SlotOutput] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.outputs) == len(self.audio)


def make_callers(count: int, rng: np.random.Generator) -> list[Caller]:
    """Every other one greedy, some longer than the context, so that the ring wraps."""
    return [
        Caller(
            noise(int(rng.integers(20, CONTEXT + 40)), seed=100 + number),
            SessionConfig(seed=number, text_top_k=number + 2)
            if number % 2
            else SessionConfig.greedy(),
        )
        for number in range(count)
    ]


def run_in_company(model: StepModel, callers: list[Caller], rng: np.random.Generator) -> None:
    """Callers take random free slots at random times, skip steps, and leave when done."""
    queue = list(callers)
    seats: dict[int, Caller] = {}
    while queue or seats:
        free = [slot for slot in range(model.slots) if slot not in seats]
        if queue and free and rng.random() < 0.3:
            slot = int(rng.choice(free))
            seats[slot] = queue.pop(0)
            model.join(slot, seats[slot].config)
        frames = {
            slot: caller.audio[len(caller.outputs)]
            for slot, caller in seats.items()
            if rng.random() < 0.8
        }
        if not frames:
            continue
        for slot, output in model.step(frames).items():
            seats[slot].outputs.append(output)
            if seats[slot].done:
                del seats[slot]
                if rng.random() < 0.5:  # else the slot is taken over as it is
                    model.leave(slot)


@pytest.mark.slow
def test_sixteen_callers_hear_what_they_would_hear_alone(make_model) -> None:
    rng = np.random.default_rng(0)
    callers = make_callers(16, rng)
    assert max(len(caller.audio) for caller in callers) > CONTEXT
    run_in_company(make_model(7), callers, rng)
    model = make_model(1)
    for caller in callers:
        alone = converse(model, caller.audio, caller.config)
        np.testing.assert_array_equal(tokens_of(caller.outputs), tokens_of(alone))
        np.testing.assert_allclose(pcm_of(caller.outputs), pcm_of(alone), atol=1e-5)


def test_phones_can_be_heard_beside_the_codec(make_model) -> None:
    model, audio = make_model(2), noise(12, seed=2)
    for slot in range(2):
        model.join(slot, SessionConfig.greedy())
    outputs = [model.step({0: frame, 1: frame}, phone_codes={1: 3}) for frame in audio]
    own, told = (tokens_of([output[slot] for output in outputs]) for slot in range(2))
    first = 1 + own.shape[1] // 2  # of the user's codes
    assert (told[:, first] == 3).all() and (own[:, first] != 3).any()
    np.testing.assert_array_equal(own[:, first + 1 :], told[:, first + 1 :])
    assert (own[:, :first] != told[:, :first]).any()
    alone = converse(make_model(1), audio, SessionConfig.greedy())
    np.testing.assert_array_equal(own, tokens_of(alone))


def test_words_can_be_chosen(make_model) -> None:
    model = make_model(2)
    model.join(0, SessionConfig.greedy())
    model.join(1, SessionConfig.greedy())
    audio = noise(12, seed=1)
    sampled: list[tuple[int, int]] = []

    def say_seven(slot: int, token: int) -> int:
        sampled.append((slot, token))
        return 7 if slot == 1 else token

    free = [model.step({0: frame, 1: frame})[0].text_token for frame in audio[:6]]
    for index, frame in enumerate(audio[6:]):
        outputs = model.step({0: frame, 1: frame}, say_seven)
        assert [slot for slot, _ in sampled[-2:]] == [0, 1]
        if index:  # the acoustic delay is one step
            assert outputs[1].text_token == 7
    again = converse(make_model(1), audio, SessionConfig.greedy())
    assert tokens_of(again)[:6, 0].tolist() == free
    assert outputs[0].text_token == again[-1].text_token
