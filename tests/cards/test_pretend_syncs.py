"""How often one step makes the host wait for the card; the numbers are bounds, to be lowered.

Reads are where the host waits for a result of the card. Copies go to the card from memory that is not
pinned, or are awaited. ``pytest -s`` prints the tables with the lines of code.
"""

import itertools

import pytest
from helpers import fake_store, small_model
from pretend import PretendedCuda
from pretend_runs import OBJECTIVES
from small_runs import tiny

from star.model.sampler import generate
from star.training.batches import TrainLoader
from star.training.learner import Learner
from star.training.likelihood import token_nll

TRAINING_STEP = {  # name in OBJECTIVES: (reads, copies) at most
    "ar": (1, 0),
    "ar in two parts": (1, 0),
    "st-ar": (1, 0),
    "st-ar in two passes": (1, 0),
    "st-ar recomputed": (1, 0),
}
SAMPLING_STEP = (0, 0)  # one token of every image
SAMPLING_START = (2, 2)  # up to the third, before which the graph is captured
LIKELIHOOD_BATCH = (1, 2)


def within(name, counted, bounds) -> bool:
    print(f"\n{name}: {counted.of('read')} reads, {counted.of('copy')} copies\n{counted}")
    return counted.of("read") <= bounds[0] and counted.of("copy") <= bounds[1]


@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
@pytest.mark.parametrize("name", TRAINING_STEP)
def test_a_training_step_waits_seldom(name, precision):
    config = tiny(dropout=0.1, precision=precision, **OBJECTIVES[name])
    with PretendedCuda() as card:
        learner = Learner(config, card.device)
        for step, batch in enumerate(TrainLoader(fake_store(), config).batches(0, 3, pin=True)):
            with card.counted() as counted:  # of the last; the first makes the optimizer's state
                learner.update(batch, step)
        assert within(f"step of {name}, {precision}", counted, TRAINING_STEP[name])


@pytest.mark.parametrize(
    "options", [{"cfg_scale": 1.0}, {"top_k": 3, "top_p": 0.9}, {"greedy": True}], ids=str
)
def test_a_sampling_step_waits_never(options):
    with PretendedCuda() as card:
        model, ends = small_model(device=card.device), []
        with card.counted() as counted:
            generate(
                model, [0, 1], seeds=[0, 1], on_step=lambda *_: ends.append(len(card.events)), **options
            )
        start = len(card.events) - len(counted)
        assert len(ends) == model.config.tokens
        for before, end in itertools.pairwise(ends[2:]):
            step = type(counted)(card.events[before:end])
            assert within(f"sampling step, {options}", step, SAMPLING_STEP)
        first = type(counted)(card.events[start : ends[2]])
        assert within("up to the third token", first, SAMPLING_START)


def test_a_batch_of_likelihoods_waits_for_its_result():
    with PretendedCuda() as card:
        model = small_model(device=card.device)
        with card.counted() as counted:
            token_nll(model, fake_store(images=8), batch_size=8)
        assert within("likelihood of a batch", counted, LIKELIHOOD_BATCH)
