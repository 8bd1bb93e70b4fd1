"""Checkpoints in torch's memory, read by moshi's own loaders."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingMultiheadAttention
from safetensors import safe_open

from pipecat_duplex.engine.checkpoint import CODEBOOKS, CheckpointFiles, find_checkpoint
from pipecat_duplex.engine.model import ModelSummary
from pipecat_duplex.engine.torch.quantization import Quantization, adopt_published, quantize
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, CheckpointError, one_line

ALL_CODEBOOKS = re.compile(r"(depformer\.layers\.\d+\.self_attn\.(?:in|out)_proj)[._]weight")
"""A weight that holds one matrix a codebook, one below the other."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Parameters:
        lm: The language model.
        mimi: The codec, with as many codebooks as the language model speaks.
        vocabulary: What its monologue is made of.
        summary: What it is.
    """

    lm: LMModel
    mimi: MimiModel
    vocabulary: Vocabulary
    summary: ModelSummary


def load_checkpoint(
    name: str | Path,
    device: str | None = None,
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
) -> Checkpoint:
    """Load a checkpoint into memory.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        device: Where to, in torch's words. None is CUDA if there is a GPU, else the CPU.
        dtype: Number format of the language model, ``float32`` or ``bfloat16``. None is bfloat16 on
            CUDA and float32 on the CPU.
        quantization: How to keep the weights of its linear layers, if not in full.

    Raises:
        CheckpointError: It cannot be found, is incomplete, is not a full-duplex Moshi, or does not
            fit into memory.
    """
    target = _choose_device(device)
    number_format = _choose_dtype(dtype, target)
    files = find_checkpoint(name)
    info = open_with_moshi(files)
    vocabulary = files.vocabulary()
    try:
        mimi = loaders.get_mimi(files.mimi_weights, info.mimi_config, target, CODEBOOKS)
        lm = load_language(files, info, target, number_format)
        lm_parameters = count_parameters(lm)
        if quantization is not None and not files.config.get("quantize"):
            quantize(lm, quantization)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"checkpoint {name} does not fit into the memory of {target}: "
            "choose a smaller checkpoint or another device"
        ) from error
    except Exception as error:  # torch, safetensors and moshi's asserts: all mean bad files
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {one_line(error)}") from error
    if mimi.frame_size != STEP_SAMPLES or mimi.sample_rate != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"checkpoint {name} is not a full-duplex Moshi: its codec does not have "
            f"steps of {STEP_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz"
        )
    summary = ModelSummary(
        name=files.name,
        trained=files.trained,
        lm_parameters=lm_parameters,
        mimi_parameters=count_parameters(mimi),
        context_steps=lm.context or 0,
        runtime="torch",
        device=str(target),
        dtype=str(number_format).removeprefix("torch."),
        kv_bytes_per_slot=kv_bytes(lm.transformer, number_format) + kv_bytes(mimi, torch.float32),
        sampling=files.sampling,
        fingerprint=files.fingerprint(),
        text_tokens=lm.text_card,
        audio_tokens=lm.card,
        quantization="int8" if files.config.get("quantize") else quantization,
    )
    return Checkpoint(lm, mimi, vocabulary, summary)


def open_with_moshi(files: CheckpointFiles) -> loaders.CheckpointInfo:
    """Open the files of a checkpoint with moshi's own class, which loads them."""
    # One of the first repositories, or PersonaPlex: moshi knows the sizes.
    if files.config_path is None or files.is_personaplex:
        return loaders.CheckpointInfo(files.lm_weights, files.mimi_weights, files.tokenizer)
    return loaders.CheckpointInfo.from_hf_repo(
        files.name,
        moshi_weights=files.lm_weights,
        mimi_weights=files.mimi_weights,
        tokenizer=files.tokenizer,
        config_path=files.config_path,
        mimi_config_path=files.mimi_config_path,
        lora_weights=files.lora_weights,
    )


def load_language(
    files: CheckpointFiles, info: loaders.CheckpointInfo, device: torch.device, dtype: torch.dtype
) -> LMModel:
    """Load the language model, weight by weight, so that nothing is in memory twice.

    Of a model that predicts the user as well, what it predicts the user with is left out: the
    agent's codebooks come first, and each is predicted from those before it. So are the heads of a
    recogniser that predict pauses, of which its weights may have more than its configuration. The
    scales of 8-bit
    weights stay in float32, which moshi's loader rounds and then refuses.
    """
    if info.lora_weights is not None:
        return info.get_moshi(device, dtype)
    config = info.lm_config
    if files.predicts_user:
        config = (config or loaders._lm_kwargs) | {"dep_q": CODEBOOKS}
    elif files.recognizes:
        config = (config or {}) | {"extra_heads_num_heads": 0}
    lm = loaders.get_moshi_lm(None, config, torch.device("meta"), dtype)
    wanted = lm.state_dict() if files.predicts_user or files.recognizes else None
    weights: dict[str, torch.Tensor] = {}
    with safe_open(files.lm_weights, framework="pt", device=str(device)) as file:
        for name in file.keys():
            match = ALL_CODEBOOKS.fullmatch(name)
            if wanted is not None and match is not None:
                rows = wanted[f"{match[1]}s.0.weight"].shape[0]
                parts = file.get_tensor(name).split(rows)[:CODEBOOKS]
                for codebook, part in enumerate(parts):
                    weights[f"{match[1]}s.{codebook}.weight"] = part.clone().to(dtype)
            elif wanted is None or name in wanted:
                weights[name] = _in_format(name, file.get_tensor(name), dtype)
    lm.load_state_dict(weights, assign=True)
    if files.config.get("quantize"):
        adopt_published(lm)
    return lm.eval()


def _in_format(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    is_scale = name.endswith("_scb")
    return weight.to(dtype) if weight.is_floating_point() and not is_scale else weight


def _choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name is None:
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name not in formats:
        raise CheckpointError(f"dtype {name!r} is not supported: there are {', '.join(formats)}")
    return formats[name]


def _choose_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise CheckpointError(f"there is no device {device!r}: try 'cpu' or 'cuda'") from error
    if target.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device {device!r} is not supported: use 'cpu' or 'cuda'")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {device!r} was asked for, but torch finds no such GPU")
    return target


def count_parameters(module: torch.nn.Module) -> int:
    """Count the numbers that a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def kv_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Size of one slot's ring of keys and values, over all attentions in the module."""
    attentions = [m for m in module.modules() if isinstance(m, StreamingMultiheadAttention)]
    return sum(
        2 * (attention.context or 0) * (attention.embed_dim // attention.kv_repeat) * dtype.itemsize
        for attention in attentions
    )
