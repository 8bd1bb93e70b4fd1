"""Models and scripted audio for the engine's tests.

torch is imported inside the fixtures: without it the files here are skipped, with a reason.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.session import STEP_SAMPLES

if TYPE_CHECKING:
    from pipecat_duplex.engine.torch.checkpoint import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Steps of the tiny model are too short to share, least of all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """What runs the model."""
    return request.param


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A benchmark flushes denormals to zero in this thread; the tests after it want them back."""
    import torch

    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech as codes, see ``tests.engine.bank``."""
    from tests.engine.bank import write_bank

    folder = tmp_path_factory.mktemp("bank")
    write_bank(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, made to listen: what it says depends on what it hears.

    Codebooks of random numbers lie far from what the random encoder gives, so that all audio would
    have the same codes. Here the encoder loses its biases, which drown the audio, and the codebooks
    are fitted to noise of many levels: near ties between codes, which rounding could turn, become
    as rare as in a trained codec. The language model's logits are stretched, so that tokens vary.
    """
    from training.onnx_graphs import write_graphs

    folder = tmp_path_factory.mktemp("listening") / "tiny"
    let_listen(tiny_checkpoint, folder)
    write_graphs(folder)
    return folder


def let_listen(source: Path, folder: Path) -> None:
    """Copy a tiny checkpoint and make it listen, see :func:`checkpoint_folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    from training.checkpoint import load_checkpoint

    shutil.copytree(source, folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mimi = load_checkpoint(source).get_mimi()
        for name, parameter in mimi.named_parameters():
            if name.startswith("encoder.") and name.endswith("bias"):
                parameter.zero_()
        levels = torch.logspace(-3, 0, 400).repeat_interleave(STEP_SAMPLES)
        latents = mimi.encode_to_latent(torch.randn(1, 1, len(levels)) * levels, quantize=False)
        mimi.quantizer.train()
        books = [each for each in mimi.quantizer.modules() if hasattr(each, "_initialized")]
        for book in books[: mimi.num_codebooks]:
            book._initialized.fill_(0)
            book._cached_initialized = False
        for _ in range(mimi.num_codebooks):  # one more level of k-means each time
            mimi.quantizer(latents, mimi.frame_rate)
        # Beyond those, ever finer levels would be of the size of rounding.
        last = books[mimi.num_codebooks - 1]
        for book in books[mimi.num_codebooks :]:
            book.cluster_usage.fill_(1)
            book.embedding_sum.mul_(float(last.embedding.std()))
        save_file(mimi.state_dict(), folder / "mimi.safetensors")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith(("linears.", "text_linear.weight")):
            weights[name] = weight * 4
    save_file(weights, folder / "model.safetensors")


@pytest.fixture(scope="session")
def hearing_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint that listens, and a recogniser that hears 32 codebooks of its codec."""
    from training.random_checkpoint import write_random_checkpoint, write_random_recognizer

    root = tmp_path_factory.mktemp("hearing")
    write_random_checkpoint(root / "plain", codec_codebooks=32)
    let_listen(root / "plain", root / "tiny")
    return root / "tiny", write_random_recognizer(root / "recognizer", root / "tiny", seed=1)


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> "Checkpoint":
    """The checkpoint in memory. Only one model may stream it at a time."""
    from pipecat_duplex.engine.torch.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint_folder, "cpu")
