"""Weights in fewer bits, other number formats, and checkpoints that are read without a copy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger
from moshi.models import loaders
from moshi.utils.quantize import QLinear, replace_linear_with_qlinear
from safetensors.torch import load_file, save_file

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.torch.checkpoint import load_checkpoint
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.engine.torch.quantization import QuantizedLayer, QuantizedProjection
from pipecat_duplex.session import CheckpointError, SessionConfig
from tests.engine.scripted import noise

MODES = ("int8", "int4")
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def tokens_of(model: BatchedModel, audio: np.ndarray, slot: int = 0) -> np.ndarray:
    model.join(slot, SessionConfig.greedy())
    return np.stack([model.step({slot: frame})[slot].tokens for frame in audio])


def layers_of(lm: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in lm.modules() if isinstance(m, QuantizedLayer | QuantizedProjection)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_in_fewer_bits_give_nearly_the_same(checkpoint_folder: Path, mode, dtype) -> None:
    full = load_checkpoint(checkpoint_folder, "cpu", dtype=dtype)
    small = load_checkpoint(checkpoint_folder, "cpu", dtype=dtype, quantization=mode)
    assert small.summary.lm_parameters == full.summary.lm_parameters
    kept = sum(p.nbytes for layer in layers_of(small.lm) for p in layer.parameters())
    plain = [m for m in full.lm.modules() if type(m) is torch.nn.Linear and m.bias is None]
    whole = sum(m.weight.nbytes for m in plain)
    assert len(layers_of(small.lm)) == len(plain) > 0
    assert kept < whole * (0.56 if mode == "int8" else 0.36) * (1 if dtype == "bfloat16" else 0.5)
    columns = torch.randint(0, 60, (1, 17, 20), generator=torch.Generator().manual_seed(0))
    exact, near = (model.lm.forward_text(columns)[0].float() for model in (full, small))
    error = (exact - near).norm() / exact.norm()
    assert error < (0.03 if mode == "int8" else 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "memory", "steps"),
    [
        ("int8", None, 12),
        ("int4", FP8, 12),
        pytest.param("int8", FP8, 120, marks=pytest.mark.slow),
    ],
)
def test_neighbours_do_not_matter(checkpoint_folder: Path, mode, memory, steps: int) -> None:
    """With 120 steps past the context of 100, where the ring wraps."""
    loaded = load_checkpoint(checkpoint_folder, "cpu", quantization=mode)
    audio, other = noise(steps, seed=1), noise(steps, seed=2)
    model = BatchedModel(loaded, 2, 1, memory)
    alone = tokens_of(model, audio)
    model.leave(0)
    model.join(0, SessionConfig.greedy())
    model.join(1, SessionConfig.greedy())
    beside = []
    for step, frame in enumerate(audio):
        frames = {0: frame} if step % 5 == 0 else {0: frame, 1: other[step]}
        beside.append(model.step(frames)[0].tokens)
    np.testing.assert_array_equal(alone, np.stack(beside))
    model._streaming.close()


def test_keys_and_values_in_eight_bits(checkpoint_folder: Path) -> None:
    loaded = load_checkpoint(checkpoint_folder, "cpu")
    audio = noise(15, seed=3)
    own, small = BatchedModel(loaded, 1, 1), None
    exact = tokens_of(own, audio)
    own._streaming.close()
    small = BatchedModel(loaded, 1, 1, FP8)
    near = tokens_of(small, audio)
    states = loaded.lm.transformer.get_streaming_state().values()
    rings = [state.kv_cache for state in states if getattr(state, "kv_cache", None) is not None]
    assert rings and all(ring.cache.dtype == FP8 and ring.cache.any() for ring in rings)
    assert (exact[0] == near[0]).all()
    small._streaming.close()


@pytest.fixture
def q8_folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint as ``kyutai/moshiko-pytorch-q8`` is laid out: int8 weights and their scales."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "q8"))
    config = json.loads((folder / "config.json").read_text()) | {"bias_proj": False}
    weights = load_file(folder / "model.safetensors")
    weights = {n: w.float() for n, w in weights.items() if n != "text_linear.bias"}
    sizes = {
        key: value
        for key, value in config.items()
        if not key.endswith("_name") and key not in ("model_type", "model_id", "lm_gen_config")
    }
    biased = [n for n in weights if n.startswith(("linears", "text_linear")) and n.endswith("bias")]
    for name in biased:
        del weights[name]
    lm = loaders.get_moshi_lm(None, sizes, dtype=torch.float32)
    lm.load_state_dict(weights, strict=False)
    replace_linear_with_qlinear(lm)
    state = {name: value.contiguous() for name, value in lm.state_dict().items()}
    save_file(state, folder / "model.q8.safetensors")
    (folder / "model.safetensors").unlink()
    config |= {"quantize": True, "moshi_name": "model.q8.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_published_q8_checkpoint(q8_folder: Path, dtype: str) -> None:
    loaded = load_checkpoint(q8_folder, "cpu", dtype=dtype)
    scales = [m.weight_scb for m in loaded.lm.modules() if isinstance(m, QLinear)]
    assert scales and all(scale.dtype == torch.float32 for scale in scales)
    model = BatchedModel(loaded, 1, 1)
    tokens = tokens_of(model, noise(10, seed=4))
    assert (tokens[1:] >= 0).all()
    model._streaming.close()


def test_weights_are_there_once(checkpoint_folder: Path) -> None:
    """No view keeps a larger tensor alive."""
    lm = load_checkpoint(checkpoint_folder, "cpu", dtype="bfloat16").lm
    split = [p for n, p in lm.named_parameters() if "projs." not in n]
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in split)


def test_a_format_that_there_is_not(checkpoint_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="float16"):
        load_checkpoint(checkpoint_folder, "cpu", dtype="float16")


async def test_the_engine_takes_them(checkpoint_folder: Path) -> None:
    engine = await Engine.load(
        checkpoint_folder, runtime="torch", dtype="bfloat16", quantize="int8"
    )
    try:
        assert (engine.summary.dtype, engine.summary.quantization) == ("bfloat16", "int8")
        session = await engine.open(SessionConfig.greedy())
        for frame in noise(3, seed=5):
            session.send(frame)
        assert [step.index async for step, _ in _first(session.steps(), 3)] == [0, 1, 2]
        await session.close()
    finally:
        await engine.close()


@pytest.mark.parametrize(("mode", "is_told"), [("int8", False), ("int4", True)])
async def test_an_experimental_mode_is_told(checkpoint_folder: Path, mode, is_told: bool) -> None:
    told: list[str] = []
    sink = logger.add(told.append, level="WARNING", format="{message}")
    try:
        await (await Engine.load(checkpoint_folder, quantize=mode)).close()
    finally:
        logger.remove(sink)
    assert any("experimental" in line for line in told) == is_told


async def _first(steps, count: int):
    left = count
    async for step in steps:
        left -= 1
        yield step, left
        if not left:
            return


@pytest.mark.parametrize("wanted", [{"quantize": "int8"}, {"dtype": "bfloat16"}])
async def test_onnx_runtime_has_one_format(wanted: dict) -> None:
    with pytest.raises(ValueError, match="torch"):
        await Engine.load("embedded", runtime="onnx", **wanted)


async def test_quantize_by_another_name() -> None:
    with pytest.raises(ValueError, match="int8, int4"):
        await Engine.load("embedded", quantize="int3")  # pyright: ignore
