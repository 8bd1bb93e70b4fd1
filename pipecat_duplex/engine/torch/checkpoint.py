"""Checkpoints in torch's memory, read by moshi's own loaders."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingMultiheadAttention
from safetensors.torch import load_file

from pipecat_duplex.engine.checkpoint import CODEBOOKS, CheckpointFiles, find_checkpoint
from pipecat_duplex.engine.model import ModelSummary
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


def load_checkpoint(name: str | Path, device: str | None = None) -> Checkpoint:
    """Load a checkpoint into memory.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        device: Where to, in torch's words. None is CUDA if there is a GPU, else the CPU. CUDA runs
            the language model in bfloat16, the CPU in float32.

    Raises:
        CheckpointError: It cannot be found, is incomplete, is not a full-duplex Moshi, or does not
            fit into memory.
    """
    target = _choose_device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    files = find_checkpoint(name)
    info = open_with_moshi(files)
    vocabulary = files.vocabulary()
    if files.predicts_user:
        info.lm_config = (info.lm_config or {}) | {"dep_q": CODEBOOKS}
    try:
        mimi = info.get_mimi(target)
        load = _load_agent_only if files.predicts_user else loaders.CheckpointInfo.get_moshi
        lm = load(info, target, dtype)
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
        lm_parameters=_count_parameters(lm),
        mimi_parameters=_count_parameters(mimi),
        context_steps=lm.context or 0,
        runtime="torch",
        device=str(target),
        dtype=str(dtype).removeprefix("torch."),
        kv_bytes_per_slot=_kv_bytes(lm.transformer, dtype) + _kv_bytes(mimi, torch.float32),
        sampling=files.sampling,
        fingerprint=files.fingerprint(),
        text_tokens=lm.text_card,
        audio_tokens=lm.card,
    )
    return Checkpoint(lm, mimi, vocabulary, summary)


def open_with_moshi(files: CheckpointFiles) -> loaders.CheckpointInfo:
    """Open the files of a checkpoint with moshi's own class, which loads them."""
    if files.config_path is None:  # one of the first repositories: moshi knows its sizes
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


def _load_agent_only(
    info: loaders.CheckpointInfo, device: torch.device, dtype: torch.dtype
) -> LMModel:
    """Load a model that predicts the user as well, without what it predicts the user with.

    The agent's codebooks come first, and each is predicted from those before it: what follows them
    can be left out.
    """
    lm = loaders.get_moshi_lm(None, info.lm_config, device, dtype)
    wanted = lm.state_dict()
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(info.moshi_weights, device=str(device)).items():
        match = ALL_CODEBOOKS.fullmatch(name)
        if match is not None:
            parts = weight.view(2 * CODEBOOKS, -1, weight.shape[-1])[:CODEBOOKS]
            for codebook, part in enumerate(parts):
                weights[f"{match[1]}s.{codebook}.weight"] = part.to(dtype)
        elif name in wanted:
            weights[name] = weight.to(dtype)
    lm.load_state_dict(weights)
    return lm.eval()


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


def _count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kv_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Size of one slot's ring of keys and values, over all attentions in the module."""
    attentions = [m for m in module.modules() if isinstance(m, StreamingMultiheadAttention)]
    return sum(
        2 * (attention.context or 0) * (attention.embed_dim // attention.kv_repeat) * dtype.itemsize
        for attention in attentions
    )
