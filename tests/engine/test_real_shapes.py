"""The shapes of the published 7B models, with random weights and few layers, on the CPU."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from moshi.models import loaders

from benchmarks.gpu import measures, report
from benchmarks.gpu.__main__ import main, make_bench, run
from benchmarks.gpu.prediction import CARDS, find_card, predict
from benchmarks.gpu.shapes import build, count, shape_of
from pipecat_duplex.engine.torch.checkpoint import kv_bytes
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.session import SessionConfig
from tests.engine.scripted import noise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """What the table is made of, from models that hold no weights."""
    shape = shape_of("7b")
    lm = loaders.get_moshi_lm(None, shape.lm, torch.device("meta"), torch.bfloat16)
    mimi = loaders.get_mimi(None, shape.mimi, "cpu", 8)
    memory = kv_bytes(lm.transformer, torch.bfloat16) + kv_bytes(mimi, torch.float32)
    return {"lm_parameters": count(lm), "mimi_parameters": count(mimi), "kv_bytes": memory}


@pytest.mark.slow
def test_the_published_sizes(sizes: dict[str, int]) -> None:
    assert round(sizes["lm_parameters"] / 1e9, 2) == 7.69
    assert round(sizes["mimi_parameters"] / 1e6) == 79
    # 32 layers, 3,000 steps, keys and values of 4,096 numbers in two bytes; the codec's are beside.
    assert 0 < sizes["kv_bytes"] - 32 * 3000 * 2 * 4096 * 2 < 20e6


def test_the_table_in_the_docs_is_what_is_predicted(sizes: dict[str, int]) -> None:
    assert report.sizing_table(sizes) in (ROOT / "docs" / "gpu.md").read_text()


def test_predictions_follow_the_card(sizes: dict[str, int]) -> None:
    by_name = {card.name: report.predictions(sizes, card) for card in CARDS}
    full = by_name["H100"]["bfloat16"]
    assert 38 <= full.callers <= 42 and full.bound_by == "memory"
    assert by_name["T4"]["bfloat16"].callers == 0 < by_name["T4"]["int8"].callers
    slow = find_card("Some NVIDIA L4 card", 100 * 2**30)
    assert slow is not None and predict(slow, **sizes).bound_by == "time"
    assert find_card("An unknown card", 2**30) is None


@pytest.fixture(scope="module")
def narrow():
    """Full width, vocabulary, codebooks and codec; two layers of 32."""
    with torch.inference_mode():
        return build(shape_of("narrow"), torch.device("cpu"), torch.bfloat16)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.slow
def test_slots_of_the_real_width(narrow) -> None:
    """Memory is what the formula says, and a neighbour who joins and pauses changes nothing."""
    model = BatchedModel(narrow, 2, 2)
    states = [
        *narrow.lm.transformer.get_streaming_state().values(),
        *narrow.mimi.get_streaming_state().values(),
    ]
    rings = [s.kv_cache.cache for s in states if getattr(s, "kv_cache", None) is not None]
    assert sum(ring.nbytes for ring in rings) == 2 * narrow.summary.kv_bytes_per_slot
    audio, other = noise(6, seed=1), noise(6, seed=2)
    model.join(0, SessionConfig(seed=1))
    alone = [model.step({0: pcm})[0].tokens for pcm in audio]
    model.leave(0)
    model.join(0, SessionConfig(seed=1))
    model.join(1, SessionConfig(seed=2))
    beside = []
    for step, pcm in enumerate(audio):
        frames = {0: pcm, 1: other[step]} if step not in (0, 3) else {0: pcm}
        beside.append(model.step(frames)[0].tokens)
    np.testing.assert_array_equal(alone, beside)
    assert np.stack(alone)[1:, 0].max() < 32_000
    model._streaming.close()


@pytest.mark.slow
def test_a_persona_of_the_real_width(narrow) -> None:
    model = BatchedModel(narrow, 2, 2)
    model.join(1, SessionConfig.greedy())
    model.join(0, SessionConfig.greedy())
    parts = 0
    for _ in model.prefill(0, measures.known_steps(narrow, 160)):
        model.step({1: noise(1, seed=parts)[0]})
        parts += 1
    assert parts >= 3
    out = model.step({0: noise(1, seed=9)[0]})[0]
    assert (out.tokens >= 0).all() and np.isfinite(out.pcm).all()
    model._streaming.close()


@pytest.mark.slow
def test_the_command_on_a_cpu(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "sys.argv", ["gpu", "--shape", "small", "--steps", "3", "--out", str(tmp_path)]
    )
    with torch.inference_mode(False):
        main()
    table = (tmp_path / "gpu.md").read_text()
    for figure in (
        "step of one session, bfloat16",
        "a recogniser beside it",
        "fp8 memory",
        "int8",
        "int4",
        "prefill of 160",
    ):
        assert figure in table
    assert "left out" not in capsys.readouterr().out
    assert re.search(r"steps equal alone and beside 2 others \| \| 3 of 3", table)


def test_what_finds_no_time_is_named() -> None:
    with torch.inference_mode(False):
        figures = run(make_bench("small", minutes=0, steps=3), lambda what: None)
    assert [line.partition(":")[0] for line in figures["left_out"]][:2] == [
        "bfloat16",
        "joins_and_leaves",
    ]
    assert len(report.summary_table(figures).splitlines()) == 2
