import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from pipecat_duplex.engine import checkpoint as checkpoints
from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER, find_checkpoint
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.torch.checkpoint import load_checkpoint
from pipecat_duplex.session import CheckpointError


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_summary(folder: Path) -> None:
    change_config(folder, model_id={"trained": False})
    loaded = load_checkpoint(folder, "cpu")
    summary = loaded.summary
    assert (summary.name, summary.device, summary.dtype) == (str(folder), "cpu", "float32")
    assert summary.trained is False
    assert summary.context_steps == 100
    assert summary.lm_parameters == sum(p.numel() for p in loaded.lm.parameters())
    with torch.inference_mode(), loaded.lm.streaming(3):
        rings = [
            module._streaming_state.kv_cache.cache
            for module in loaded.lm.transformer.modules()
            if hasattr(module, "in_projs")
        ]
        lm_bytes = sum(ring.numel() * ring.element_size() for ring in rings) // 3
    assert lm_bytes < summary.kv_bytes_per_slot < 2 * lm_bytes


def test_trained_unless_it_says_otherwise(folder: Path) -> None:
    for model_id in (None, {"name": "x"}, "x"):
        change_config(folder, model_id=model_id)
        assert load_checkpoint(folder).summary.trained


def test_pieces_are_none_for_padding_and_control(folder: Path) -> None:
    vocabulary = load_checkpoint(folder).vocabulary
    pieces = [vocabulary.piece(token) for token in range(400)]
    assert pieces[:4] == [None] * 4
    assert vocabulary.piece(-1) is vocabulary.piece(10**6) is None
    assert "<0xE2>" in pieces
    assert any(piece and len(piece) > 2 and piece.startswith("▁") for piece in pieces)


def test_missing_folder() -> None:
    for name in ("./no-such-folder", "/no/such/folder", "no-such-name", "a/b/c"):
        with pytest.raises(CheckpointError, match="no folder"):
            find_checkpoint(name)


def test_embedded_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="not part of this installation"):
        find_checkpoint("embedded")


def test_embedded_present(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", folder)
    assert load_checkpoint("embedded").summary.name == "embedded"


@pytest.mark.parametrize(
    "file", ["config.json", "mimi_config.json", "model.safetensors", "tokenizer.model"]
)
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        find_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\xff"])
def test_bad_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "hibiki"}, "hibiki"),
        ({"dep_q": 0, "n_q": 32}, "recognizes"),
        ({"stt_config": {"audio_delay_seconds": 0.5}}, "recognizes"),
        ({"tts_config": {"multistream": True}}, "synthesizes"),
        ({"dep_q": 12}, "12 codebooks"),
        ({"dep_q": None}, "does not describe"),
        ({"delays": [0, 1]}, "17 streams"),
        ({"conditioners": {"speaker": {}}}, "conditions"),
        ({"existing_text_padding_id": 5}, "padding"),
    ],
)
def test_other_models_are_refused(folder: Path, changes: dict, problem: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=problem):
        find_checkpoint(folder)


def test_other_codec_is_refused(folder: Path) -> None:
    path = folder / "mimi_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frame_rate": 25}))
    with pytest.raises(CheckpointError, match="codec"):
        find_checkpoint(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "mimi.safetensors", "tokenizer.model"])
def test_broken_file(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_size(folder: Path) -> None:
    change_config(folder, dim=128)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(folder)


def test_unknown_device(folder: Path) -> None:
    for device in ("toaster", "meta", "cuda:99"):
        with pytest.raises(CheckpointError, match=device):
            load_checkpoint(folder, device)


def test_hub_name_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("nobody/nothing", "nobody/nothing@v1"):
        with pytest.raises(CheckpointError, match="cannot be reached") as caught:
            find_checkpoint(name)
        assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("pipecat_duplex.engine.hub.getproxies", dict)
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        find_checkpoint("nobody/nothing")
    assert "Retry" not in caplog.text


def test_sampling_is_the_checkpoints_unless_asked_otherwise(tiny_checkpoint, tmp_path):
    import json
    import shutil

    from pipecat_duplex.session import MOSHI_SAMPLING, SessionConfig

    assert load_checkpoint(tiny_checkpoint, "cpu").summary.sampling == MOSHI_SAMPLING
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["lm_gen_config"] = {"temp": 0.2, "temp_text": 0.1, "top_k": 10}
    (folder / "config.json").write_text(json.dumps(config))
    recommended = load_checkpoint(folder, "cpu").summary.sampling
    assert recommended == (0.1, 25, 0.2, 10)
    asked = SessionConfig(audio_temperature=0, text_top_k=3)
    assert asked.sampling(recommended) == (0.1, 3, 0, 10)


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "lora_name", "tokenizer_name"])
@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "../model.safetensors",
        "a/../../model.safetensors",
        "~/model.safetensors",
        "C:\\model.safetensors",
        "",
        ".",
        "file://",
        "hf://owner",
        "hf://owner/name",
        "hf://owner/name/../../model.safetensors",
        "a\0.safetensors",
        5,
        True,
        ["model.safetensors"],
        {"name": "model.safetensors"},
    ],
)
def test_a_config_names_files_within_the_checkpoint(folder: Path, key: str, value: Any) -> None:
    change_config(folder, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        find_checkpoint(folder)


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "lora_name"])
@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.bin", "evil.PT", "safetensors"])
def test_weights_that_could_be_programs_are_refused(folder: Path, key: str, name: str) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for value in (name, f"file://{name}", f"hf://owner/name/{name}"):
        change_config(folder, **{key: value})
        with pytest.raises(CheckpointError, match="safetensors"):
            find_checkpoint(folder)


def test_a_required_name_that_is_null_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    for key in ("moshi_name", "mimi_name", "tokenizer_name"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: None}))
        with pytest.raises(CheckpointError, match=key):
            find_checkpoint(folder)
        change_config(folder)  # leaves null keys out


@pytest.mark.parametrize(
    "changes",
    [
        {"delays": 5},
        {"delays": "0" * 17},
        {"delays": [0] * 16 + [-1]},
        {"delays": [0] * 16 + [10**6]},
        {"delays": [0.5] * 17},
        {"delays": [[0]] * 17},
        {"card": "x"},
        {"card": 0},
        {"card": True},
        {"text_card": 10**12},
        {"text_card": -5},
        {"dim": 2.5},
        {"context": 0},
        {"context": "512"},
        {"num_layers": 10**6},
        {"num_heads": []},
        {"n_q": "16"},
        {"dep_q": 8.5},
        {"dep_q": {}},
        {"hidden_scale": "4"},
        {"max_period": -1},
        {"lm_gen_config": [1]},
        {"lm_gen_config": "warm"},
        {"lm_gen_config": {"temp": "hot"}},
        {"lm_gen_config": {"temp": -1}},
        {"lm_gen_config": {"temp_text": 1e9}},
        {"lm_gen_config": {"top_k": 2**63}},
        {"lm_gen_config": {"top_k_text": 2.5}},
        {"lm_gen_config": {"use_sampling": "no"}},
        {"model_type": ["moshi"]},
        {"anything": float("nan")},
        {"anything": [[[[[[[[[[1]]]]]]]]]]},
        {"anything": [1] * 5000},
        {"model_id": {"deep": 2**70}},
    ],
    ids=str,
)
def test_mistakes_in_a_config_are_told_in_words(folder: Path, changes: dict) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match="config") as caught:
        find_checkpoint(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{}" + " " * 2_000_000])
def test_json_made_to_do_harm_is_refused(folder: Path, text: str) -> None:
    for name in ("config.json", "mimi_config.json"):
        path = folder / name
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(CheckpointError, match=name):
            find_checkpoint(folder)
        path.write_text(before)


@pytest.mark.parametrize(
    "changes", [{"sample_rate": "24000"}, {"frame_rate": None}, {"seanet": 5}, {"transformer": []}]
)
def test_mistakes_in_a_codecs_config_are_told_in_words(folder: Path, changes: dict) -> None:
    path = folder / "mimi_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="codec"):
        find_checkpoint(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "mimi.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little"),
        b"",
        b"abc",
        (2).to_bytes(8, "little") + b"[]",
        (6).to_bytes(8, "little") + b'{"a":1',
        (7).to_bytes(8, "little") + b'{"a":1}',
        (21).to_bytes(8, "little") + b'{"a":{"shape":["x"]}}',
        (19).to_bytes(8, "little") + b'{"a":{"shape":null}',
    ],
    ids=range(9),
)
def test_weights_whose_header_is_none_are_refused(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    for load in (lambda: load_checkpoint(folder, "cpu"), lambda: load_onnx_model(folder, 1, 1)):
        with pytest.raises(CheckpointError):
            load()


@pytest.mark.parametrize("key", ["card", "text_card", "context"])
def test_sizes_other_than_those_of_the_graphs_are_refused(tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "embedded"))
    size = json.loads((folder / "config.json").read_text())[key]
    for wrong in (size - 1, size + 1):
        change_config(folder, **{key: wrong})
        with pytest.raises(CheckpointError):
            load_onnx_model(folder, 1, 1)
