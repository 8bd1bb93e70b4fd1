"""Checkpoints from a hub on loopback, through the real client of the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from loguru import logger

from pipecat_duplex.engine import hub as hub_module
from pipecat_duplex.engine.checkpoint import find_checkpoint
from pipecat_duplex.engine.torch.checkpoint import load_checkpoint, open_with_moshi
from pipecat_duplex.session import CheckpointError
from tests.engine.hub import LoopbackHub, Repository, serving

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"
TINY = "kyutai/tiny-pytorch-bf16"


@pytest.fixture
def files(tiny_checkpoint: Path) -> dict[str, bytes]:
    """The tiny checkpoint under the names that Kyutai publishes."""
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config |= {
        "moshi_name": "model.safetensors",
        "mimi_name": MIMI,
        "tokenizer_name": TOKENIZER,
        "mimi_config_name": "mimi_config.json",
    }
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (tiny_checkpoint / "model.safetensors").read_bytes(),
        MIMI: (tiny_checkpoint / "mimi.safetensors").read_bytes(),
        TOKENIZER: (tiny_checkpoint / "tokenizer.model").read_bytes(),
        "mimi_config.json": (tiny_checkpoint / "mimi_config.json").read_bytes(),
    }


@pytest.fixture
def hub(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with serving(LoopbackHub({TINY: Repository(files)})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_module, "getproxies", dict)
        yield served


@pytest.fixture
def notices() -> Iterator[list[str]]:
    """What a person is told before it happens."""
    told: list[str] = []
    sink = logger.add(
        lambda line: told.append(str(line).strip()),
        format="{message}",
        filter=lambda record: bool(record["extra"].get("notice")),
    )
    yield told
    logger.remove(sink)


def only_line(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_is_downloaded_once_and_then_runs_offline(
    hub: LoopbackHub, notices: list[str], files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_checkpoint(TINY, "cpu").summary.name == TINY
    assert hub.sent == {name: len(content) for name, content in files.items()}
    size = sum(len(content) for name, content in files.items() if name != "config.json")
    assert len(notices) == 1
    assert notices[0].startswith(f"Downloading {TINY}: {size / 1e6:.1f} MB, licence: cc-by-4.0")
    load_checkpoint(TINY, "cpu")
    assert hub.sent == {name: len(content) for name, content in files.items()}
    assert len(notices) == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert load_checkpoint(TINY, "cpu").summary.name == TINY


def test_by_the_variable_of_the_client(hub: LoopbackHub, tmp_path: Path) -> None:
    """As a user sets it, in a process of its own; the command line tells what it downloads."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    code = (
        "from pipecat_duplex import cli; cli._start_logging(False);"
        "from pipecat_duplex.engine.checkpoint import find_checkpoint;"
        f"print(find_checkpoint({TINY!r}).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == TINY, done.stderr
    assert f"Downloading {TINY}: " in done.stderr and "cc-by-4.0" in done.stderr
    assert str(tmp_path / "home") in done.stderr


def test_a_revision(hub: LoopbackHub) -> None:
    from tests.engine.hub import COMMIT

    assert find_checkpoint(f"{TINY}@{COMMIT}").trained is False
    assert "no such revision" in only_line(f"{TINY}@v9")


def test_a_download_that_broke_off_goes_on_where_it_was(
    hub: LoopbackHub, files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client keeps whole chunks, of 10 MB: smaller ones here, as the file is."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    whole = len(files["model.safetensors"])
    hub.cut_after = whole // 2
    try:
        find_checkpoint(TINY)
    except CheckpointError as error:  # the client's own retry may have gone on already
        assert "\n" not in str(error)
    found = find_checkpoint(TINY)
    assert found.lm_weights.read_bytes() == files["model.safetensors"]
    assert whole <= hub.sent["model.safetensors"] < whole + 2000
    assert hub.ranges == ["model.safetensors"]


def test_refusals_are_one_clear_line(hub: LoopbackHub, files) -> None:
    hub.repositories["nvidia/gated"] = Repository(files, gated=True)
    assert "accept its terms" in only_line("nvidia/gated")
    assert "no such repository" in only_line("kyutai/none")
    hub.unauthorized = True
    assert "hf auth login" in only_line(TINY)


@pytest.mark.parametrize("missing", ["model.safetensors", MIMI, TOKENIZER, "mimi_config.json"])
def test_a_missing_file_is_named(hub: LoopbackHub, files, missing: str) -> None:
    del files[missing]
    assert missing in only_line(TINY)


def test_a_disk_without_room(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[TINY].told_size = 10**15
    told = only_line(TINY)
    assert "HF_HOME" in told and "4000000.0 GB" in told
    assert "model.safetensors" not in hub.sent


def test_a_disk_that_fills_up(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(hub_module, "hf_hub_download", full)
    assert "the disk is full" in only_line(TINY)


def test_weights_that_are_cut_in_the_cache(hub: LoopbackHub) -> None:
    found = find_checkpoint(TINY)
    real = found.lm_weights.resolve()
    real.write_bytes(real.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_checkpoint(TINY, "cpu")
    assert "\n" not in str(caught.value)


def published(files: dict[str, bytes], **changes) -> Repository:
    """A repository with another ``config.json``."""
    config = json.loads(files["config.json"]) | changes
    return Repository(files | {"config.json": json.dumps(config).encode()})


def test_the_first_repositories_have_no_config(hub: LoopbackHub, files) -> None:
    """``kyutai/moshiko-pytorch-bf16`` as it was first published."""
    names = ("model.safetensors", MIMI, TOKENIZER)
    hub.repositories["kyutai/first"] = Repository({name: files[name] for name in names})
    found = find_checkpoint("kyutai/first")
    assert (found.config_path, found.text_tokens, found.audio_tokens) == (None, 32_000, 2048)
    assert open_with_moshi(found).lm_config is None


def test_personaplex_names_no_sizes(hub: LoopbackHub, files) -> None:
    config = json.dumps({"model_type": "personaplex", "version": "7b-v1"}).encode()
    names = ("model.safetensors", MIMI, TOKENIZER)
    kept = {name: files[name] for name in names} | {"config.json": config, "voices.tgz": b""}
    hub.repositories["nvidia/personaplex-7b-v1"] = Repository(kept)
    found = find_checkpoint("nvidia/personaplex-7b-v1")
    assert found.predicts_user and found.is_personaplex
    assert (found.text_tokens, found.audio_tokens) == (32_000, 2048)
    assert open_with_moshi(found).lm_config is None
    assert "voices.tgz" not in hub.sent


def test_a_checkpoint_by_reinforcement_learning_is_moshis(hub: LoopbackHub, files) -> None:
    """``kyutai/moshika-rl-seamless``: Moshi's layout, the codec in another repository."""
    hub.repositories["kyutai/mimi-only"] = Repository({MIMI: files[MIMI]})
    hub.repositories["kyutai/moshika-rl-seamless"] = published(
        files, mimi_name=f"hf://kyutai/mimi-only/{MIMI}", model_id={"sig": "1", "epoch": 2}
    )
    assert load_checkpoint("kyutai/moshika-rl-seamless", "cpu").summary.trained


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("kyutai/stt-1b-en_fr", {"dep_q": 0, "n_q": 32, "stt_config": {}}, "recognizes"),
        ("kyutai/tts-1.6b", {"tts_config": {"audio_delay": 1.28}}, "synthesizes"),
        ("kyutai/hibiki-1b", {"model_type": "hibiki"}, "hibiki"),
        (
            "kyutai/moshika-rag-pytorch-bf16",
            {"fuser": {"streaming_sum": ["reference"], "sum": [], "cross": [], "prepend": []}},
            "streaming_sum",
        ),
    ],
)
def test_what_is_no_full_duplex_model_is_refused_before_its_weights(
    hub: LoopbackHub, files, name: str, changes: dict, problem: str
) -> None:
    hub.repositories[name] = published(files, **changes)
    assert problem in only_line(name)
    assert set(hub.sent) == {"config.json"}
