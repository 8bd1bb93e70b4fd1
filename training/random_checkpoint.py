"""Checkpoints with random weights, for tests: same files and shapes as trained ones.

    python -m training.random_checkpoint FOLDER [--size tiny] [--seed 0]

A random language model would say nothing but letters and bytes. Its text logits are therefore
biased: pieces that are no words are ruled out and padding is raised, so that the monologue is
mostly padding with words in between. With Moshi's default sampling four to nine tenths of the steps
carry padding, depending on seed and input. Greedy decoding picks more padding:
``tiny`` with seeds 0 and 1 still says a word about every tenth step, ``embedded`` nearly none.
"""

import argparse
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
from moshi.models import LMModel, MimiModel

from training import checkpoint
from training.sizes import (
    END_OF_PADDING_ID,
    PADDING_ID,
    Size,
    lm_config,
    mimi_config,
    recognizer_config,
)
from training.tokenizer import WORD_START, build_tokenizer

PADDING_BIAS = {"tiny": 5.0, "embedded": 5.0}
END_OF_PADDING_BIAS = 0.5
NOT_FOR_LM = (
    "moshi_name",
    "mimi_name",
    "mimi_config_name",
    "tokenizer_name",
    "model_type",
    "lm_gen_config",
    "stt_config",
    "model_id",
)
RULED_OUT = -30.0


def write_random_checkpoint(
    folder: Path | str,
    *,
    size: Size = "tiny",
    seed: int = 0,
    codec_codebooks: int | None = None,
) -> Path:
    """Write a checkpoint with random weights and return its folder.

    Args:
        folder: created if missing; files of the same names are replaced.
        size: ``tiny`` (a step in a few ms, context of 100 steps) or ``embedded`` (as shipped).
        seed: the same seed gives the same weights.
        codec_codebooks: codebooks of its codec, if more than the language model speaks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder / checkpoint.TOKENIZER)
    codec, language = mimi_config(size), lm_config(tokenizer.vocab_size(), size)
    codec["quantizer"]["n_q"] = codec_codebooks or codec["quantizer"]["n_q"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        mimi = checkpoint.build_mimi(codec)
        _randomise_codebooks(mimi)
        lm = checkpoint.build_lm(language)
        _bias_text(lm, tokenizer, PADDING_BIAS[size])
    checkpoint.write_configs(
        folder, language, codec, model_id=f"random-{size}-{seed}", trained=False
    )
    checkpoint.save_weights(mimi.state_dict(), folder / checkpoint.MIMI_WEIGHTS)
    checkpoint.save_weights(lm.state_dict(), folder / checkpoint.LM_WEIGHTS)
    return folder


def write_random_recognizer(folder: Path | str, codec: Path | str, *, seed: int = 0) -> Path:
    """Write a recogniser with random weights, laid out as Kyutai's, and return its folder.

    It hears every codebook of its codec, 0.5 s behind. About half of its tokens are padding.

    Args:
        folder: created if missing; files of the same names are replaced.
        codec: a checkpoint's folder, of which it takes the codec.
        seed: the same seed gives the same weights.
    """
    folder, codec = Path(folder), Path(codec)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (checkpoint.MIMI_WEIGHTS, checkpoint.MIMI_CONFIG):
        shutil.copyfile(codec / name, folder / name)
    quantizer = json.loads((codec / checkpoint.MIMI_CONFIG).read_text())["quantizer"]
    tokenizer = build_tokenizer(folder / checkpoint.TOKENIZER)
    config = recognizer_config(tokenizer.vocab_size(), quantizer["n_q"], quantizer["bins"])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        lm = checkpoint.build_lm({k: v for k, v in config.items() if k not in NOT_FOR_LM})
        rows = lm.text_linear.weight
        for piece_id in range(tokenizer.vocab_size()):
            piece = tokenizer.id_to_piece(piece_id)
            is_word = len(piece) > 1 and piece.startswith(WORD_START)
            rows[piece_id] *= 2.0 if is_word else 0.0
        rows[PADDING_ID].normal_(std=8 * float(rows.std()))
        rows[END_OF_PADDING_ID].normal_(std=4 * float(rows.std()))
    (folder / checkpoint.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    checkpoint.save_weights(lm.state_dict(), folder / checkpoint.LM_WEIGHTS)
    return folder


def _randomise_codebooks(mimi: MimiModel) -> None:
    """Fill the codebooks, which are empty until training runs k-means on them."""
    for name, buffer in mimi.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()
        elif name.endswith("_initialized"):
            buffer.fill_(1)


def _bias_text(
    lm: LMModel, tokenizer: sentencepiece.SentencePieceProcessor, padding_bias: float
) -> None:
    """Let the random monologue be padding with words in between."""
    bias = lm.text_linear.bias
    for piece_id in range(tokenizer.vocab_size()):
        piece = tokenizer.id_to_piece(piece_id)
        is_word = len(piece) > 1 and piece.startswith(WORD_START)
        bias[piece_id] = 0.0 if is_word else RULED_OUT
    bias[PADDING_ID] = padding_bias
    bias[END_OF_PADDING_ID] = END_OF_PADDING_BIAS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("tiny", "embedded"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_random_checkpoint(options.folder, size=options.size, seed=options.seed)


if __name__ == "__main__":
    main()
