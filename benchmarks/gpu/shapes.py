"""Models of the real shapes with random weights, built on the device: nothing is downloaded."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel

from pipecat_duplex.engine.checkpoint import CODEBOOKS, find_checkpoint
from pipecat_duplex.engine.model import Hearing, ModelSummary
from pipecat_duplex.engine.torch.checkpoint import Checkpoint, kv_bytes
from pipecat_duplex.engine.torch.quantization import Quantization, quantize
from pipecat_duplex.engine.torch.recognizer import BatchedRecognizer
from pipecat_duplex.session import MOSHI_SAMPLING

EAR_1B = {
    "card": 2048,
    "n_q": 32,
    "dep_q": 0,
    "delays": [0] * 33,
    "dim": 2048,
    "text_card": 8000,
    "num_heads": 16,
    "num_layers": 16,
    "hidden_scale": 4.125,
    "causal": True,
    "context": 750,
    "max_period": 100_000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
}
"""Kyutai's recogniser of a billion parameters, in the keys of moshi's loaders."""

EAR_DELAY_STEPS = 6

ShapeName = Literal["7b", "narrow", "small"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a codec and a language model, in the keys of moshi's loaders.

    Parameters:
        name: What it is called.
        lm: The language model's.
        mimi: The codec's.
        ear: The language model's of a recogniser beside it.
    """

    name: ShapeName
    lm: dict[str, Any]
    mimi: dict[str, Any]
    ear: dict[str, Any]


def shape_of(name: ShapeName) -> Shape:
    """Return a shape.

    Args:
        name: ``7b`` is Moshi as published, by moshi's own table. ``narrow`` has its width,
            vocabulary and codebooks, with two layers of its 32 and one of the depformer's six.
            ``small`` is for a CPU.
    """
    lm, mimi = dict(loaders._lm_kwargs), dict(loaders._mimi_config)
    ear = dict(EAR_1B)
    if name == "narrow":
        lm |= {"num_layers": 2, "depformer_num_layers": 1}
        ear |= {"num_layers": 1}
    if name == "small":
        lm |= {
            "dim": 128,
            "text_card": 2000,
            "num_heads": 4,
            "num_layers": 2,
            "context": 200,
            "depformer_dim": 64,
            "depformer_dim_feedforward": 264,
            "depformer_num_heads": 4,
            "depformer_num_layers": 1,
        }
        codec = mimi["seanet"] | {"n_filters": 4, "dimension": 32}
        transformer = mimi["transformer"] | {
            "d_model": 32,
            "num_heads": 2,
            "num_layers": 1,
            "dim_feedforward": 128,
            "input_dimension": 32,
            "output_dimensions": [32],
        }
        quantizer = mimi["quantizer"] | {
            "dimension": 16,
            "n_q": CODEBOOKS,
            "input_dimension": 32,
            "output_dimension": 32,
        }
        mimi |= {"seanet": codec, "transformer": transformer, "quantizer": quantizer}
        delays = [0] * (1 + CODEBOOKS)
        ear |= {"dim": 64, "n_q": CODEBOOKS, "delays": delays, "num_heads": 2, "num_layers": 1}
    return Shape(name, lm, mimi, ear)


def build(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Build a model with random weights where it will run.

    Args:
        shape: Its sizes.
        device: Where to.
        dtype: Number format of the language model.
        quantization: How to keep its weights, if not in full.
        seed: The same seed gives the same weights on the same device.
    """
    torch.manual_seed(seed)
    mimi = loaders.get_mimi(None, shape.mimi, device, CODEBOOKS)
    for name, buffer in mimi.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()
        elif name.endswith("_initialized"):
            buffer.fill_(1)
    lm = _build_lm(shape.lm, device, dtype)
    parameters = count(lm)
    if quantization is not None:
        quantize(lm, quantization)
    return Checkpoint(
        lm,
        mimi,
        find_checkpoint("embedded").vocabulary(),
        _summary(shape, lm, mimi, parameters, device, dtype, quantization),
    )


def build_ear(shape: Shape, device: torch.device, dtype: torch.dtype) -> LMModel:
    """Build a recogniser's language model with random weights where it will run."""
    torch.manual_seed(1)
    return _build_lm(shape.ear, device, dtype)


def recognizer_of(lm: LMModel, slots: int) -> BatchedRecognizer:
    """Return a recogniser with so many slots; its codec is that of the model beside it."""
    vocabulary = find_checkpoint("embedded").vocabulary()
    no_silence = np.zeros((lm.n_q, 0), np.int64)
    made = BatchedRecognizer(
        lm, vocabulary, slots, voice_delay_steps=EAR_DELAY_STEPS, lead_in=no_silence
    )
    memory = kv_bytes(lm.transformer, lm.dtype)
    made.hearing = Hearing("random", count(lm), lm.n_q, made.delay_steps, memory)
    return made


def _build_lm(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LMModel:
    # Built empty and then filled: the usual initialization would make each weight in float32.
    lm = loaders.get_moshi_lm(None, config, torch.device("meta"), dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            _fill(name, parameter)
    return lm


def _fill(name: str, parameter: torch.nn.Parameter) -> None:
    if name.endswith("alpha"):
        parameter.fill_(1.0)
    elif parameter.dim() < 2:
        parameter.zero_()
    else:
        # Of a size at which sums over the width stay near 1, so that no token runs away.
        parameter.normal_(std=parameter.shape[-1] ** -0.5)


def count(module: torch.nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _summary(
    shape: Shape,
    lm: LMModel,
    mimi: MimiModel,
    parameters: int,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
) -> ModelSummary:
    return ModelSummary(
        name=f"random {shape.name}",
        trained=False,
        lm_parameters=parameters,
        mimi_parameters=count(mimi),
        context_steps=lm.context or 0,
        runtime="torch",
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        kv_bytes_per_slot=kv_bytes(lm.transformer, dtype) + kv_bytes(mimi, torch.float32),
        sampling=MOSHI_SAMPLING,
        fingerprint=f"random-{shape.name}",
        text_tokens=lm.text_card,
        audio_tokens=lm.card,
        quantization=quantization,
    )
