"""The mean of two states of the language model."""

import pytest
import torch

from training.average import average

pytestmark = pytest.mark.engine


def test_weights_are_averaged_and_counts_are_not():
    def state(value: float, count: int) -> dict:
        weights = {"weight": torch.full((2,), value), "count": torch.tensor(count)}
        return {"lm": weights, "heads": [weights], "step": count}

    mean = average(state(1.0, 5), state(3.0, 7))
    assert mean["lm"]["weight"].tolist() == [2.0, 2.0]
    assert mean["heads"][0]["weight"].tolist() == [2.0, 2.0]
    assert mean["step"] == 7
    nearly = average(state(1.0, 5), state(3.0, 7), share=0.25)
    assert nearly["lm"]["weight"].tolist() == [2.5, 2.5]
