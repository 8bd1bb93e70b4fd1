"""The loss of the language model's training."""

import pytest
import torch

from training.lm import LMOptions, LMTrainer
from training.sizes import END_OF_PADDING_ID, PADDING_ID

pytestmark = pytest.mark.engine

CARD, WORD, OTHER = 20, 10, 11
TEXT = [PADDING_ID, END_OF_PADDING_ID, WORD, END_OF_PADDING_ID, WORD, PADDING_ID]
GIVEN = [False, True, True, False, True, False]


def loss(says: list[int]) -> float:
    """Of a model that says this where it is told two words."""
    trainer = LMTrainer(LMOptions(), CARD)
    logits = 20 * torch.nn.functional.one_hot(torch.tensor([says]), CARD).float()
    given, decisive = torch.tensor([GIVEN]), torch.zeros(1, len(says), dtype=torch.bool)
    return float(trainer._text_terms(logits, torch.tensor([TEXT]), given, decisive)["text"])


@pytest.mark.slow
def test_who_is_told_a_word_need_not_know_it_and_says_none_of_its_own():
    silent = [PADDING_ID, END_OF_PADDING_ID, OTHER, END_OF_PADDING_ID, PADDING_ID, PADDING_ID]
    assert loss(silent) < 0.01
    # That it speaks at all is given.
    assert loss([PADDING_ID, PADDING_ID, PADDING_ID, *silent[3:]]) < 0.01
    assert loss([*silent[:4], OTHER, PADDING_ID]) > 1
    assert loss([*silent[:4], WORD, PADDING_ID]) > 1
    # When it goes on is not.
    assert loss([*silent[:3], PADDING_ID, PADDING_ID, PADDING_ID]) > 1
