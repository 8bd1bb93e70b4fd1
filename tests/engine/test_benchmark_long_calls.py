"""The benchmark of long calls: its windows, and the way that the package does not have."""

from pathlib import Path

import numpy as np

from benchmarks.duplex.dialogue import Dialogue, Moment
from benchmarks.long_calls.__main__ import Run, by_window, markdown
from benchmarks.long_calls.persona import Left, converse, persona_left
from benchmarks.long_calls.ways import FIRST_COLUMNS, load_keeping_prompt
from pipecat_duplex.engine.onnx import load_model
from pipecat_duplex.session import SessionConfig
from tests.engine.scripted import noise

CONTEXT = 100


def test_moments_are_counted_in_their_window() -> None:
    moments = [
        Moment("ask", "two plus three", "sum", "two plus three is five", end - 1.0, end, None, None)
        for end in (3.0, 12.0, 38.0)
    ]
    for moment in moments:
        moment.until_secs = moment.end_secs + 3.0
    pcm = np.zeros(40 * 24_000, np.float32)
    pcm[round(12.4 * 24_000) : round(14.0 * 24_000)] = 0.1
    words = [(12.4 + 0.3 * n, word) for n, word in enumerate("two plus three is five".split())]
    dialogue = Dialogue("voice", "seen", pcm, pcm, words, moments)
    windows = by_window([dialogue], 3, 10.0)
    assert [(each.takeover.hits, each.takeover.of) for each in windows] == [(0, 1), (1, 1), (0, 0)]
    run = Run("ring", windows, 0, 1.0, [])
    assert run.shares("right").hits == 1
    table = markdown([run], [Left("ring", 50, 0.5)], 10.0)
    assert "| takeover | ring | 0.00 | 1.00 | – |" in table and "| ring | 0.500 |" in table


def test_the_prompt_is_kept_and_nothing_else_changes(checkpoint_folder: Path) -> None:
    audio = noise(CONTEXT + 30, seed=1)
    plain, kept = (load(str(checkpoint_folder), 2) for load in (load_model, load_keeping_prompt))
    said = []
    for model in (plain, kept):
        model.join(1, SessionConfig.greedy())
        said.append([model.step({1: frame})[1].tokens for frame in audio[:CONTEXT]])
        model.keep()
    np.testing.assert_array_equal(*said)

    def rings() -> list[np.ndarray]:
        return [model._memory.ring._data[:, :, 1].copy() for model in (plain, kept)]

    before = rings()[1]
    for model in (plain, kept):
        for frame in audio[CONTEXT:]:
            model.step({1: frame})
        model.keep()
    after_plain, after = rings()
    first = slice(0, FIRST_COLUMNS)
    np.testing.assert_array_equal(after[:, 1, :, first], before[:, 1, :, first])
    sizes = [np.linalg.norm(ring[:, 0, :, first], axis=-1) for ring in (before, after)]
    np.testing.assert_allclose(*sizes, rtol=1e-4)
    assert (after[:, 0, :, first] != before[:, 0, :, first]).any()
    assert (after_plain[:, 1, :, first] != before[:, 1, :, first]).any()
    assert np.isfinite(after).all()


def test_a_ring_forgets_a_persona_and_a_rebuild_does_not(checkpoint_folder: Path) -> None:
    codes = converse(str(checkpoint_folder), noise(4 * CONTEXT + 1, seed=2).ravel())
    left = persona_left(str(checkpoint_folder), codes, [CONTEXT // 4, 4 * CONTEXT])
    difference = {(each.way, each.steps): each.difference for each in left}
    assert difference["ring", 4 * CONTEXT] < 0.2 * difference["ring", CONTEXT // 4]
    assert difference["rebuild", 4 * CONTEXT] > 0.25 * difference["rebuild", CONTEXT // 4]
    assert difference["rebuild", 4 * CONTEXT] > 3 * difference["ring", 4 * CONTEXT]
