"""Stage 6: the checkpoint folder.

    python -m training.export CODEC_RUN LM_RUN FOLDER

Writes ``config.json``, ``mimi_config.json``, ``model.safetensors``, ``mimi.safetensors`` and
``tokenizer.model``, which moshi's own loaders read, and the graphs for ONNX Runtime, which point
into the weights. The heads that served training are left out.
"""

import argparse
from pathlib import Path

import torch

from training import checkpoint
from training.onnx_graphs import write_graphs
from training.sizes import lm_config, mimi_config
from training.tokenizer import build_tokenizer

# Moshi's own defaults (0.8 and 0.7) suit a model of the world; this one knows few sentences and
# says them best when it hardly samples.
GENERATION = {"temp": 0.2, "temp_text": 0.1, "top_k": 10, "top_k_text": 5}


def export(codec_run: Path, lm_run: Path, folder: Path) -> None:
    """Write the checkpoint folder from the latest states of both trainings."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder / checkpoint.TOKENIZER)
    mimi, lm = mimi_config(), lm_config(tokenizer.vocab_size())
    codec_state = torch.load(codec_run / "last.pt", weights_only=True)
    lm_state = torch.load(lm_run / "last.pt", weights_only=True)
    name = f"embedded-{codec_state['step']}-{lm_state['step']}"
    checkpoint.write_configs(folder, lm, mimi, model_id=name, generation=GENERATION)
    checkpoint.save_weights(codec_state["mimi"], folder / checkpoint.MIMI_WEIGHTS, torch.float32)
    checkpoint.save_weights(lm_state["lm"], folder / checkpoint.LM_WEIGHTS)
    write_graphs(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codec_run", type=Path)
    parser.add_argument("lm_run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    export(options.codec_run, options.lm_run, options.folder)


if __name__ == "__main__":
    main()
