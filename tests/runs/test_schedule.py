"""One learning rate for all runs, at its corners."""

import dataclasses

import pytest
from small_runs import tiny

from star.runs.schedule import learning_rate
from star.tokenizer.config import TokenizerConfig


def test_of_a_model():
    cosine = tiny(max_steps=102, warmup_steps=2, lr=1.0)
    values = [learning_rate(cosine, step) for step in (0, 1, 2, 52, 102)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    constant = dataclasses.replace(cosine, schedule="constant")
    assert learning_rate(constant, 90) == 1.0


def test_of_a_tokenizer():
    config = TokenizerConfig(max_steps=100, warmup_steps=10, lr=1.0)
    assert [learning_rate(config, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(config, 10) == 1.0
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 99) < 0.001
    constant = dataclasses.replace(config, schedule="constant")
    assert learning_rate(constant, 99) == 1.0
