"""A checkpoint folder in Moshi's own layout."""

import json
from pathlib import Path
from typing import Any

import torch
from moshi.models import LMModel, MimiModel, loaders
from safetensors.torch import save_file

CONFIG = "config.json"
MIMI_CONFIG = "mimi_config.json"
LM_WEIGHTS = "model.safetensors"
MIMI_WEIGHTS = "mimi.safetensors"
TOKENIZER = "tokenizer.model"


def build_mimi(config: dict[str, Any]) -> MimiModel:
    """A codec with fresh weights, built by moshi's own loader."""
    return loaders.get_mimi(None, config, num_codebooks=config["quantizer"]["n_q"])


def build_lm(config: dict[str, Any]) -> LMModel:
    """A language model with fresh float32 weights, built by moshi's own loader."""
    return loaders.get_moshi_lm(None, dict(config), dtype=torch.float32)


def write_configs(
    folder: Path,
    lm_config: dict[str, Any],
    mimi_config: dict[str, Any],
    model_id: str,
    generation: dict[str, Any] | None = None,
    *,
    trained: bool = True,
) -> None:
    """Write ``config.json`` and ``mimi_config.json``; ``generation`` are settings for ``LMGen``.

    ``trained`` tells users of the checkpoint whether its weights mean anything. ``words_only``
    tells them that its agent says words that are one piece, in lower case, and no others.

    moshi's loader reads the codec's configuration from a file of its own. Its name carries
    ``file://`` because the loader would look for a bare name on the hub, even when all else is
    local.
    """
    names = {
        "moshi_name": LM_WEIGHTS,
        "mimi_name": MIMI_WEIGHTS,
        "mimi_config_name": f"file://{MIMI_CONFIG}",
        "tokenizer_name": TOKENIZER,
        "model_type": "moshi",
        "lm_gen_config": generation or {},
        "model_id": {"name": model_id, "trained": trained, "words_only": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(lm_config | names, indent=2) + "\n")
    (folder / MIMI_CONFIG).write_text(json.dumps(mimi_config, indent=2) + "\n")


def save_weights(
    state: dict[str, torch.Tensor], path: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Save weights as safetensors; floating point as ``dtype``, bfloat16 to halve the file.

    Codebook statistics stay as they are: their quotient is the codebook, and rounding it would move
    codes of the encoder away from those that the language model was trained on.
    """
    converted = {}
    for name, value in state.items():
        keep = not value.is_floating_point() or "_codebook" in name
        converted[name] = value.detach().clone().contiguous().to(value.dtype if keep else dtype)
    save_file(converted, path)


def load_checkpoint(folder: Path) -> loaders.CheckpointInfo:
    """Open a local folder with moshi's own ``CheckpointInfo``; nothing is looked up on the hub."""
    return loaders.CheckpointInfo.from_hf_repo(
        "local",
        moshi_weights=folder / LM_WEIGHTS,
        mimi_weights=folder / MIMI_WEIGHTS,
        tokenizer=folder / TOKENIZER,
        config_path=folder / CONFIG,
        mimi_config_path=folder / MIMI_CONFIG,
    )
