"""Trainings that go on from a checkpoint folder.

    python -m training.unpack FOLDER CODEC_RUN LM_RUN

A checkpoint holds the weights alone. The optimisers start afresh, and so do the heads that serve
training: the language model's learn first, while it warms up; the codec's, which tells phones,
knows nothing, so train the decoder with ``--set phone_weight=0``.
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

from training import checkpoint
from training.codec import CodecOptions, CodecTrainer
from training.lm import LMOptions, LMTrainer


def unpack(folder: Path, codec_run: Path, lm_run: Path) -> None:
    """Write ``last.pt`` of both runs."""
    config = json.loads((folder / checkpoint.CONFIG).read_text())
    codec_step, lm_step = (int(part) for part in config["model_id"]["name"].split("-")[1:])
    codec = CodecTrainer(CodecOptions())
    codec.mimi.load_state_dict(load_file(folder / checkpoint.MIMI_WEIGHTS))
    codec.step = codec_step
    lm = LMTrainer(LMOptions(fresh_from=lm_step), config["text_card"])
    lm.lm.load_state_dict(load_file(folder / checkpoint.LM_WEIGHTS))
    lm.step = lm_step
    for trainer, run in ((codec, codec_run), (lm, lm_run)):
        run.mkdir(parents=True, exist_ok=True)
        trainer.save(run / "last.pt")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("codec_run", type=Path)
    parser.add_argument("lm_run", type=Path)
    options = parser.parse_args()
    unpack(options.folder, options.codec_run, options.lm_run)


if __name__ == "__main__":
    main()
