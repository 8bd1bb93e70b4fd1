"""A recogniser beside the model: on its codec, batched with its slots, never in its way."""

import asyncio
import json
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipecat_duplex.engine import Engine, ears
from pipecat_duplex.engine.ears import MAX_BEHIND_STEPS, Ears, WordCollector
from pipecat_duplex.engine.loop import StepLoop
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.engine.torch.recognizer import BatchedRecognizer
from pipecat_duplex.session import (
    CheckpointError,
    HeardWord,
    SessionConfig,
    Step,
)
from pipecat_duplex.session.history import HistoryKeeper
from tests.engine.scripted import noise

CONFIG = SessionConfig(seed=5)
DELAY_STEPS = 6
STEPS = 30

Tokens = dict[str, list[tuple[int, int]]]
"""By session, the steps that its recogniser heard, and the token that came out with each."""


@pytest.fixture
async def engine(hearing_folders: tuple[Path, Path]) -> AsyncIterator[Engine]:
    model, recognizer = hearing_folders
    engine = await Engine.load(model, slots=3, device="cpu", hears=recognizer)
    yield engine
    await engine.close()


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """What the recogniser writes while the test runs."""
    written: Tokens = defaultdict(list)
    sessions: dict[WordCollector, str] = {}
    join, take = Ears.join, WordCollector.take

    def noted_join(self: Ears, slot: int, session_id: str) -> None:
        join(self, slot, session_id)
        sessions[self._ears[slot].collector] = session_id

    def noted_take(self: WordCollector, step: int, token: int) -> list[HeardWord]:
        written[sessions[self]].append((step, token))
        return take(self, step, token)

    monkeypatch.setattr(Ears, "join", noted_join)
    monkeypatch.setattr(WordCollector, "take", noted_take)
    return written


async def converse(session: EngineSession, audio: np.ndarray) -> list[Step]:
    """Hold a conversation step by step, as fast as it goes."""
    steps: list[Step] = []
    answers = session.steps()
    for frame in audio:
        session.send(frame)
        steps.append(await anext(answers))
    return steps


async def heard_all(tokens: Tokens, session: EngineSession, step: int) -> list[int]:
    """Wait until the recogniser has heard a step, and return its tokens so far."""
    async with asyncio.timeout(10):
        # The engine's thread writes them.
        while not tokens[session.id] or tokens[session.id][-1][0] < step:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return [token for _, token in tokens[session.id]]


def run_inference(recognizer: Path, audio: np.ndarray) -> list[int]:
    """Return the text tokens of moshi's own script, its own pauses at the end included."""
    import torch
    from moshi.run_inference import InferenceState

    from training.checkpoint import load_checkpoint

    info = load_checkpoint(recognizer)
    lm = info.get_moshi("cpu", torch.float32)
    state = InferenceState(
        info,
        info.get_mimi(),
        info.get_text_tokenizer(),
        lm,
        1,
        1.0,
        "cpu",
        **info.lm_gen_config,
    )
    step, written = state.lm_gen.step, []

    def noted(codes):
        written.append(step(codes))
        return written[-1]

    state.lm_gen.step = noted  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        state.run(torch.from_numpy(audio).reshape(1, 1, -1))
    return [int(each[0, 0, 0]) for each in written[1:]]  # the first frame is heard twice


async def test_tokens_are_those_of_run_inference_whoever_comes_and_goes_beside(
    engine: Engine, hearing_folders: tuple[Path, Path], tokens: Tokens
):
    audio = noise(STEPS, seed=3)
    session = await engine.open(CONFIG)
    for first in range(0, STEPS, 10):
        neighbour = await engine.open(SessionConfig(seed=first))
        part = audio[first : first + 10]
        await asyncio.gather(converse(session, part), converse(neighbour, noise(5, first)))
        await neighbour.close()
    heard = await heard_all(tokens, session, STEPS - 1)
    await session.close()
    # The codec begins afresh after the first step of a conversation, as in moshi.server.
    assert heard == run_inference(hearing_folders[1], audio[1:])[: len(heard)]
    assert len(heard) == STEPS - 1
    assert len(set(heard)) > 5


async def test_words_are_told_with_their_steps(engine: Engine, tokens: Tokens):
    session = await engine.open(CONFIG)
    steps = await converse(session, noise(STEPS, seed=4))
    written = await heard_all(tokens, session, STEPS - 1)
    await session.close()
    words = [word for step in steps for word in step.heard]
    assert session.hearing_delay_steps == DELAY_STEPS
    for word in words:
        token = written[word.start_step + DELAY_STEPS - 1]  # step 0 is not heard
        vocabulary = engine._loaded.vocabulary
        assert vocabulary.piece(token) == "▁" + word.text.split()[0]
        assert word.end_step > word.start_step
    assert len(words) > 5
    told_at = [step.index for step in steps for _ in step.heard]
    # A word ends with the token after it, and goes out with the next step.
    assert all(
        word.end_step + DELAY_STEPS < at <= word.end_step + DELAY_STEPS + 3
        for word, at in zip(words, told_at, strict=True)
    )


async def test_the_dialogue_is_the_same_with_and_without_it(
    engine: Engine, hearing_folders: tuple[Path, Path]
):
    audio = noise(20, seed=6)
    alone = await Engine.load(hearing_folders[0], slots=3, device="cpu", runtime="torch")
    steps: list[list[Step]] = []
    for each in (alone, engine):
        session = await each.open(CONFIG)
        assert (session.hearing_delay_steps is None) == (each is alone)
        steps.append(await converse(session, audio))
        await session.close()
    await alone.close()
    for plain, heard in zip(*steps, strict=True):
        assert not plain.heard
        np.testing.assert_array_equal(plain.pcm, heard.pcm)
        assert plain.text_token == heard.text_token
        assert plain.index == 0 or plain.tokens.tolist() == heard.tokens.tolist()


async def test_a_conversation_that_moves_is_heard_again_from_its_last_audio(
    engine: Engine, hearing_folders: tuple[Path, Path], tokens: Tokens
):
    # What the tiny codec looks back on: beyond, a pass keeps a key that single steps lose.
    audio = noise(12, seed=7)
    first = await engine.open(CONFIG)
    keeper = HistoryKeeper(first.memory)
    for frame in audio:
        keeper.send(frame)
    for step in await converse(first, audio):
        keeper.take(step)
    written = await heard_all(tokens, first, len(audio) - 1)
    await first.close()
    history = keeper.history()
    assert history is not None
    second = await engine.open(CONFIG.model_copy(update={"restores": True}))
    await second.restore(history)
    more = noise(10, seed=8)
    steps = await converse(second, more)
    heard = await heard_all(tokens, second, 9)
    await second.close()
    assert heard[: len(audio) - 1] == written
    assert tokens[second.id][0][0] == 1 - len(audio)
    expected = run_inference(hearing_folders[1], np.concatenate([audio[1:], more]))
    assert heard == expected[: len(heard)]
    assert any(word.start_step < 0 for step in steps for word in step.heard)


async def test_a_step_of_the_dialogue_never_waits_for_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """As if it took a second a step: while frames wait, it has no turn."""
    monkeypatch.setattr(ears, "MAX_BEHIND_STEPS", 8)
    a_second = property(lambda _: 1.0, lambda *_: None)
    monkeypatch.setattr(StepLoop, "_listen_secs", a_second, raising=False)
    heard: list[int] = []
    listen = Ears.listen
    monkeypatch.setattr(Ears, "listen", lambda self: (heard.append(1), listen(self)))
    session = await engine.open(CONFIG)
    for frame in noise(STEPS, seed=9):
        session.send(frame)
    assert len([step async for step in _first(session, STEPS)]) == STEPS
    await session.close()
    assert engine.stats().hearing_dropped_steps >= STEPS - 10
    assert len(heard) < 10


async def _first(session: EngineSession, count: int) -> AsyncIterator[Step]:
    async for step in session.steps():
        yield step
        if step.index + 1 == count:
            return


async def test_a_fault_of_the_recogniser_ends_no_conversation(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    text = BatchedRecognizer.text
    deaf: list[str] = []

    def poisoned(self: BatchedRecognizer, tokens: list[int]) -> str:
        if not deaf:
            deaf.append("now")
            raise RuntimeError("no such text")
        return text(self, tokens)

    monkeypatch.setattr(BatchedRecognizer, "text", poisoned)
    sessions = [await engine.open(CONFIG), await engine.open(CONFIG)]
    held = await asyncio.gather(*(converse(each, noise(15, seed=3)) for each in sessions))
    # What was poisoned is one session's word: the other's are told.
    assert sorted(bool([w for step in steps for w in step.heard]) for steps in held) == [
        False,
        True,
    ]

    def broken(self: BatchedRecognizer, codes: Mapping[int, np.ndarray]) -> dict[int, int]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(BatchedRecognizer, "step", broken)
    for session in sessions:
        assert len(await converse(session, noise(5, seed=3))) == 5
        await session.close()
    assert engine.health()


def test_an_ear_that_is_owed_too_much_begins_anew(caplog):
    recognizer = _Scripted()
    each = Ears(recognizer)
    each.join(0, "a")
    for step in range(MAX_BEHIND_STEPS + 10):
        each.hear(0, step, np.zeros(1, np.int64))
    assert each.dropped_steps == MAX_BEHIND_STEPS
    assert recognizer.begun == [0, 0]
    while each.behind_steps:
        each.listen()
    assert {word.start_step for word in each.take_words(0)} <= set(
        range(MAX_BEHIND_STEPS - 3, MAX_BEHIND_STEPS + 10)
    )


class _Scripted:
    """Writes a word every other step."""

    delay_steps = 0
    lead_in = np.zeros((1, 2), np.int64)

    def __init__(self):
        self.begun: list[int] = []
        self._count = 0

    def begin(self, slot: int) -> None:
        self.begun.append(slot)

    def step(self, codes: Mapping[int, np.ndarray]) -> dict[int, int]:
        self._count += 1
        return dict.fromkeys(codes, 10 if self._count % 2 else 3)

    def piece(self, token: int) -> str:
        return "▁word"

    def text(self, tokens: list[int]) -> str:
        return "word"

    def restart(self) -> None:
        pass


async def test_onnx_runtime_refuses_it_in_words(hearing_folders: tuple[Path, Path]):
    with pytest.raises(ValueError, match="needs torch"):
        await Engine.load(hearing_folders[0], runtime="onnx", hears=hearing_folders[1])


async def test_other_checkpoints_are_refused_in_words(
    hearing_folders: tuple[Path, Path], checkpoint_folder: Path, tmp_path: Path
):
    model, recognizer = hearing_folders
    with pytest.raises(CheckpointError, match=r"does not recognise speech: .* speaks"):
        await Engine.load(model, device="cpu", hears=model)
    with pytest.raises(CheckpointError, match="hears 32 codebooks, and the model's codec has 8"):
        await Engine.load(checkpoint_folder, device="cpu", hears=recognizer)
    other = tmp_path / "other"
    shutil.copytree(recognizer, other)
    shutil.copyfile(model.parent / "plain" / "mimi.safetensors", other / "mimi.safetensors")
    with pytest.raises(CheckpointError, match="trained on another codec"):
        await Engine.load(model, device="cpu", hears=other)
    config = json.loads((other / "config.json").read_text())
    config["fuser"] = {"sum": ["description"]}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="wants conditions"):
        await Engine.load(model, device="cpu", hears=other)
    del config["fuser"]
    config["stt_config"]["audio_delay_seconds"] = 99
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="audio_delay_seconds in"):
        await Engine.load(model, device="cpu", hears=other)
