"""Modules on the meta device: nothing is drawn there, and memory comes for what is named."""

import torch
from torch import nn

from star.base.meta import embedding, give_memory
from star.model.transformer import Transformer, build_model
from star.tokenizer.model import VQModel
from star.tokenizer.shape import vq_preset
from star.training.config import preset


def test_an_embedding_is_drawn_as_torch_draws_it_and_on_the_meta_device_not_at_all():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = nn.Embedding(7, 5).weight
        torch.manual_seed(3)
        assert torch.equal(embedding(7, 5).weight, expected)
        before = torch.get_rng_state()
        with torch.device("meta"):
            table = embedding(7, 5)
        assert torch.equal(torch.get_rng_state(), before)
    assert table.weight.is_meta and table.weight.shape == (7, 5) and table.weight.requires_grad


def test_memory_comes_for_parameters_and_buffers_of_the_same_kind():
    with torch.device("meta"):
        model = VQModel(vq_preset("small"))
    kinds = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    parameters = {name for name, value in model.named_parameters() if value.requires_grad}
    give_memory(model, "cpu")
    assert {name: (value.shape, value.dtype) for name, value in model.state_dict().items()} == kinds
    assert {name for name, value in model.named_parameters() if value.requires_grad} == parameters
    assert {str(value.device) for value in model.state_dict().values()} == {"cpu"}


def test_the_positions_of_a_model_are_made_with_its_memory():
    config = preset("tiny").model
    with torch.device("meta"):
        bare = Transformer(config)
    model = build_model(config)
    assert bare.rotary.is_meta and bare.rotary.shape == model.rotary.shape
    assert model.rotary[0].abs().sum() == 0 and model.rotary[1, 0].tolist() == [1.0, 0.0]
