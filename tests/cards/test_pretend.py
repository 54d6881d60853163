"""The pretended card itself: what it refuses, allows and counts, and what is there when it is gone."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import fake_store, small_model
from pretend import Pretended, PretendedCuda
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from star.training.likelihood import image_nll

HOST, ROWS, ONE = torch.arange(6.0), torch.arange(12.0).view(3, 4), torch.tensor(2.0)
PLACES, MASK = torch.tensor([0, 2]), torch.tensor([True, False, True, False, True, False])


@pytest.fixture
def card():
    with PretendedCuda() as card:
        yield card


@pytest.fixture
def x(card):
    return HOST.to(card.device)


def rng(device):
    return torch.Generator(device).manual_seed(3)


MIXED = {
    "sum": lambda x: x + HOST,
    "a vector of one element": lambda x: x + torch.ones(1),
    "matrix product": lambda x: ROWS.T.to(x.device) @ ROWS,
    "linear layer": lambda x: F.linear(x, torch.ones(2, 6)),
    "embedding": lambda x: F.embedding(PLACES, ROWS.to(x.device)),
    "concatenation": lambda x: torch.cat([x, HOST]),
    "a stack of scalars": lambda x: torch.stack([x.sum(), ONE]),
    "in place on the card": lambda x: x.add_(HOST),
    "in place on the host": lambda x: HOST.clone().add_(x),
    "in place on a scalar of the host": lambda x: ONE.clone().add_(x.sum()),
    "out": lambda x: torch.add(x, x, out=torch.empty(6)),
    "two scalars of the host": lambda x: torch.addcmul(x, ONE, ONE),
    "a scalar where only the last may be one": lambda x: torch.addcmul(x, ONE, x),
    "the host's values by the card's places": lambda x: HOST[PLACES.to(x.device)],
    "values of the host at places of the card": lambda x: x.index_put_((PLACES,), torch.ones(2)),
    "gather": lambda x: x.gather(0, PLACES),
    "index_select": lambda x: x.index_select(0, PLACES),
    "scatter": lambda x: x.scatter(0, PLACES, 1.0),
    "mask of a fill": lambda x: x.masked_fill(MASK, 0),
    "masked_select": lambda x: x.masked_select(MASK),
    "mask of where": lambda x: torch.where(MASK, x, x),
    "branch of where": lambda x: torch.where(MASK.to(x.device), x, HOST),
    "clamp": lambda x: x.clamp(ONE, ONE + 1),
    "equal": lambda x: torch.equal(x, HOST),
    "searchsorted": lambda x: torch.searchsorted(x, HOST),
    "labels of a loss": lambda x: F.cross_entropy(ROWS.to(x.device), torch.tensor([0, 1, 2])),
    "bias": lambda x: F.linear(x, torch.ones(2, 6, device=x.device), torch.ones(2)),
    "attention mask": lambda x: F.scaled_dot_product_attention(
        *[torch.ones(1, 1, 3, 4, device=x.device)] * 3, attn_mask=torch.ones(3, 3, dtype=torch.bool)
    ),
    "lists": lambda x: torch._foreach_add_([x, x.clone()], [HOST, HOST]),
}


@pytest.mark.parametrize("name", MIXED)
def test_operands_on_two_devices_are_refused(x, name):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device.* cuda:0"):
        MIXED[name](x)


def test_a_gradient_stays_with_its_tensor(card, x):
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="to assign a gradient with device type 'cpu'"):
        x.grad = torch.ones(6)
    leaf = torch.ones(3, requires_grad=True)
    (2 * leaf.to(card.device)).sum().backward()
    assert type(leaf.grad) is torch.Tensor and leaf.grad.tolist() == [2, 2, 2]


DRAWS = {
    "normal_": lambda device, rng: torch.empty(3, device=device).normal_(generator=rng),
    "randn": lambda device, rng: torch.randn(3, device=device, generator=rng),
    "randperm": lambda device, rng: torch.randperm(5, device=device, generator=rng),
    "random_": lambda device, rng: torch.empty(3, device=device).random_(0, 9, generator=rng),
    "multinomial": lambda device, rng: torch.ones(4, device=device).multinomial(2, generator=rng),
    "init": lambda device, rng: nn.init.normal_(torch.empty(3, device=device), generator=rng),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_belongs_to_its_device(card, name):
    draw, host = DRAWS[name], torch.device("cpu")
    assert torch.equal(draw(card.device, rng("cuda")).cpu(), draw(host, rng("cpu")))
    for device, other, needed in ((card.device, "cpu", "cuda"), (host, "cuda:0", "cpu")):
        with pytest.raises(RuntimeError, match=f"Expected a '{needed}' device type for generator"):
            draw(device, rng(other))
    assert isinstance(rng("cuda"), torch.Generator) and isinstance(rng("cpu"), torch.Generator)
    assert rng("cuda").device == card.device and rng("cpu").device == host


def test_the_hosts_libraries_cannot_read_the_card(x):
    for read in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.add(x, 1), lambda: np.stack([x])):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            read()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        x.pin_memory()
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(2, device="cuda:1")
    with pytest.raises(NotImplementedError, match="meta"):
        torch.zeros(2, device="meta").to(x.device)


ALLOWED = {
    "a scalar of the host": lambda x: x + ONE.to("cpu"),
    "a scalar of the host first": lambda x: torch.tensor(2.0) * x,
    "a scalar of the host in place": lambda x: x.clone().mul_(torch.tensor(2.0)),
    "comparison with a scalar of the host": lambda x: x > torch.tensor(2.0),
    "numbers": lambda x: (2 * x - 1).clamp(0, 5) ** 2,
    "minimum with a scalar of the host": lambda x: torch.minimum(x, torch.tensor(2.0)),
    "where with scalars of the host": lambda x: torch.where(
        x > 2, torch.tensor(1.0), torch.tensor(0.0)
    ),
    "addcmul with a last scalar": lambda x: torch.addcmul(x, x, torch.tensor(2.0)),
    "fill with a scalar of the host": lambda x: x.masked_fill(x > 2, torch.tensor(9.0)),
    "places of the host": lambda x: x[torch.tensor([0, 2])],
    "places in lists": lambda x: x[[0, 2]] + x[np.array([1, 3])] + x.view(2, 3)[(0, 1), [1, 2]],
    "no places": lambda x: x[[]],
    "a mask of the host": lambda x: x[torch.tensor([True, False] * 3)],
    "a scalar of the host at places": lambda x: x.clone().index_put_((x.long(),), torch.tensor(1.0)),
    "a shape of the host's": lambda x: (
        x.sum().expand_as(torch.zeros(3)) + x.view_as(torch.zeros(6))[:3]
    ),
    "double precision": lambda x: x.double().softmax(-1),
    "complex numbers": lambda x: torch.view_as_real(torch.view_as_complex(x.view(3, 2)).conj() * 1j),
    "new tensors": lambda x: x.new_tensor([1, 2]) + x.new_zeros(2) + torch.ones_like(x)[:2],
    "default device": lambda x: _made_under(x.device) + x[:2],
    "one row of another": lambda x: _assigned(x),
    "an average kept": lambda x: torch.zeros_like(x).lerp_(x, 0.25),
    "a shape changed in place": lambda x: (
        x.clone()[None].squeeze_(0).unsqueeze_(1) * torch.ones_like(x)
    ),
    "inference mode": lambda x: _inferred(x),
}


def _made_under(device):
    with device:
        return torch.ones(2)


def _assigned(x):
    other = torch.zeros(2, 3, device=x.device)
    other[0] = HOST[:3] if x.is_cuda else HOST[:3].clone()  # a copy, from any device
    other[1, 1:], other[other > 1], other[:, 0] = 7, 3.0, torch.tensor(4.0)
    return other


def _inferred(x):
    with torch.inference_mode():
        images = HOST.view(1, 1, 2, 3).to(x.device).float()
        return F.conv2d(images, torch.ones(1, 1, 2, 2, device=x.device)).add_(1)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_gives_the_numbers_of_the_cpu(card, x, name):
    expected, found = ALLOWED[name](HOST.clone()), ALLOWED[name](x)
    assert isinstance(found, Pretended) and found.device == torch.device("cuda:0") and found.is_cuda
    assert found.dtype == expected.dtype and torch.equal(found.cpu(), expected)
    assert torch.equal(x.cpu(), HOST), "nothing else was changed"


READS = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "condition": lambda x: bool(x.isfinite().all()),
    "a number as text": lambda x: f"{x[0]:.3f}",
    "an end of a slice": lambda x: x[: x[2].long()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to the host": lambda x: x.to("cpu"),
    "to the device of another": lambda x: x.to(HOST),
    "copy to the host": lambda x: torch.empty(6).copy_(x),
    "type_as": lambda x: x.type_as(HOST),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 2),
    "boolean index": lambda x: x[x > 2],
    "values at a mask": lambda x: x.__setitem__(x > 3, x[:2].clone()),
    "value on the card of a fill": lambda x: x.masked_fill(x > 2, x[0]),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long()),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeats on the card": lambda x: x.repeat_interleave(x.long()),
    "solve": lambda x: torch.linalg.solve(torch.eye(6, device=x.device), x),
    "cholesky": lambda x: torch.linalg.cholesky(torch.eye(6, device=x.device)),
    "eigh": lambda x: torch.linalg.eigh(torch.eye(6, device=x.device)),
    "print": lambda x: str(x),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "save": lambda x: torch.save(x, io.BytesIO()),
}


@pytest.mark.parametrize("name", READS)
def test_where_the_host_waits_for_the_card_is_counted(card, x, name):
    with card.counted() as counted:
        READS[name](x)
    assert counted.of("read") == 1 and counted.of("copy") == 0, counted


def test_the_host_may_be_filled_with_a_value_of_the_card(card, x):
    with card.counted() as counted:
        found = torch.zeros(2).fill_(x[3])
    assert type(found) is torch.Tensor and found.tolist() == [3, 3] and counted.of("read") == 1


QUEUED = {
    "arithmetic": lambda x: (x * 2 - x).softmax(-1).cumsum(0),
    "order": lambda x: (x.sort(), x.topk(2), x.argmax()),
    "shape and views": lambda x: (x.shape, len(x), x[2:].view(2, 2).T, x[0], x.unbind()),
    "places on the card": lambda x: x[x.long()],
    "number at a mask": lambda x: x.__setitem__(x > 2, 0),
    "fill": lambda x: x.masked_fill(x > 2, -np.inf),
    "where": lambda x: torch.where(x > 2, x, 0),
    "classes given": lambda x: F.one_hot(x.long(), 6),
    "size given": lambda x: x.repeat_interleave(x.long(), output_size=15),
    "made there": lambda x: torch.arange(3, device=x.device) + torch.full((3,), 1, device="cuda"),
    "drawn there": lambda x: torch.rand(3, device=x.device, generator=rng(x.device)),
    "to where it is": lambda x: x.to("cuda").to(x.device, torch.float64).cuda(),
    "products": lambda x: torch.einsum("a,b->ab", x, x) @ x,
    "a norm": lambda x: x.norm().clamp(max=1),
}


@pytest.mark.parametrize("name", QUEUED)
def test_what_only_queues_work_is_not_counted(card, x, name):
    with card.counted() as counted:
        QUEUED[name](x)
    assert not counted, counted


def test_copies_to_the_card_are_counted_unless_pinned_and_not_awaited(card, x):
    pinned, made = HOST.pin_memory(), torch.empty(6, pin_memory=True)
    assert pinned.is_pinned() and pinned[2:].is_pinned() and made.is_pinned() and not HOST.is_pinned()
    for copy_, kinds in (
        (lambda: HOST.to("cuda"), ["blocking"]),
        (lambda: HOST.cuda(non_blocking=True), ["unpinned"]),
        (lambda: pinned.to("cuda"), ["blocking"]),
        (lambda: pinned.to(card.device, non_blocking=True), []),
        (lambda: x.copy_(pinned, non_blocking=True), []),
        (lambda: x.copy_(HOST, non_blocking=True), ["unpinned"]),
        (lambda: torch.tensor([1, 2], device="cuda"), ["blocking"]),
        (lambda: torch.as_tensor(np.ones(2), device=card.device), ["blocking"]),
        (lambda: x[PLACES], ["index"]),
        (lambda: x[[0, 1]], ["blocking"]),
        (lambda: nn.Linear(2, 2).to(card.device), ["blocking", "blocking"]),
        (lambda: x.to("cpu", non_blocking=True), ["cpu, not awaited"]),
    ):
        with card.counted() as counted:
            copy_()
        assert [event.what for event in counted] == kinds and counted.of("read") == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_pins_its_batches(card, workers):
    data = TensorDataset(torch.arange(4.0))
    options = {"num_workers": workers, "pin_memory": True, "generator": torch.Generator()}
    batches = [batch for (batch,) in DataLoader(data, batch_size=2, **options)]
    with card.counted() as counted:
        found = [batch.to(card.device, non_blocking=True) for batch in batches]
    assert not counted and torch.cat(found).tolist() == [0, 1, 2, 3]


def test_an_event_names_the_line_of_our_code(card):
    with card.counted() as counted:
        torch.ones(2, device="cuda").sum().item()
        image_nll(small_model(device=card.device), fake_store(images=4), batch_size=4)
    places = {event.where.partition(":")[0] for event in counted}
    assert places == {"elsewhere", "star/training/batches.py", "star/training/likelihood.py"}
    (line,) = [line for line in str(counted).splitlines() if "likelihood" in line]
    assert line.split()[:3] == ["1", "read", "cpu"]


def test_modules_optimizers_and_checkpointing(card):
    """As on a card: a module moved keeps its parameters, and steps are those of the CPU."""

    def train(device, recompute):
        net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.BatchNorm1d(4), nn.Linear(4, 3))
        nn.utils.vector_to_parameters(torch.linspace(-1, 1, 39), net.parameters())
        net[3].weight = nn.Parameter(net[0].weight.detach().clone().T.contiguous())
        net.tied = nn.Linear(3, 4)
        net.tied.weight, net.tied.bias = net[0].weight, net[0].bias
        before = list(net.parameters())
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        net.to(device)
        assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
        assert net.tied.weight is net[0].weight and isinstance(net[0].weight, nn.Parameter)
        x = torch.arange(12.0).view(4, 3).to(device)
        forward = (lambda x: checkpoint(net[:4], x, use_reentrant=False)) if recompute else net[:4]
        with card.counted() as counted:
            for _ in range(2):
                optimizer.zero_grad()
                (forward(x) - x).square().mean().backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
            twin = copy.deepcopy(net)
        assert not counted, counted
        return {"net": twin.state_dict(), "optimizer": optimizer.state_dict()}, twin, optimizer

    for recompute in (False, True):
        expected, *_ = train(torch.device("cpu"), recompute)
        found, net, optimizer = train(card.device, recompute)
        file = io.BytesIO()
        torch.save(found, file)
        for device in ("cpu", card.device):
            file.seek(0)
            content = torch.load(file, map_location=device, weights_only=True)
            assert content["net"]["0.weight"].device == torch.device(device)
            for key, value in expected["net"].items():
                assert torch.equal(content["net"][key].cpu(), value), key
            net.load_state_dict(content["net"])
            optimizer.load_state_dict(content["optimizer"])
            states = optimizer.state_dict()["state"]
            assert all(v.is_cuda for state in states.values() for v in state.values())
            for index, state in expected["optimizer"]["state"].items():
                assert all(torch.equal(states[index][key].cpu(), state[key]) for key in state)


def test_a_file_of_the_card_says_so(card):
    file = io.BytesIO()
    torch.save({"a": torch.ones(2, device="cuda"), "b": torch.ones(2)}, file)
    file.seek(0)
    seen = []
    torch.load(
        file, map_location=lambda storage, place: seen.append(place) or storage, weights_only=True
    )
    assert sorted(seen) == ["cpu", "cuda:0"]


def test_autocast_follows_cudas_lists(card, x):
    weight = torch.linspace(-1, 1, 36).view(6, 6).to(card.device).requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        product = x @ weight
        assert product.dtype == F.linear(x, weight).dtype == torch.bfloat16
        assert product.softmax(-1).dtype == product.sum().dtype == torch.float32
        assert (x.double() @ weight.double()).dtype == torch.float64
        assert torch.cat([product, x]).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ weight).dtype == torch.float32
        recomputed = checkpoint(lambda y: (y @ weight).relu(), x, use_reentrant=False)
        recomputed.float().sum().backward()
    half = x.bfloat16() @ weight.bfloat16()
    assert torch.equal(product.cpu(), half.cpu())
    assert weight.grad.dtype == torch.float32
    assert (HOST @ HOST).dtype == torch.float32, "the host's tensors are not the card's"


def test_a_graph_runs_when_it_is_replayed(card):
    """A running sum of squares: the capture itself does not count, every replay does."""
    asked, total = torch.zeros(2, device="cuda"), torch.zeros(2, device="cuda")

    def step():
        squares = asked.double().square()[None].float()
        total.add_(squares[0])
        return total * 2 + torch.ones(2, device="cuda")

    graph = torch.cuda.CUDAGraph()
    asked.fill_(3.0)
    with card.counted() as counted, torch.cuda.device(card.device), torch.cuda.graph(graph):
        result = step()
    assert [event.what for event in counted] == ["capture"]
    assert total.tolist() == [0, 0] and result.isnan().all()
    for value, sums in ((1.0, 1), (2.0, 5), (0.0, 5)):
        asked.fill_(value)
        with card.counted() as counted:
            graph.replay()
        assert not counted and total.tolist() == [sums, sums] and result.tolist() == [2 * sums + 1] * 2
    for waits in (lambda: asked.sum().item(), lambda: asked[asked > 0], lambda: HOST.to("cuda")):
        refused = pytest.raises(RuntimeError, match="not permitted when stream is capturing")
        with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
            waits()
    assert asked.tolist() == [0, 0], "no capture is left open"


def test_what_torch_says_of_the_card_and_that_it_is_gone_afterwards():
    there = torch.cuda.is_available()
    with pytest.raises(ZeroDivisionError), PretendedCuda() as card:
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        assert torch.cuda.get_device_properties(card.device).total_memory == 80 << 30
        assert torch.zeros(1).cuda().get_device() == 0
        with pytest.raises(AssertionError, match="one pretended card at a time"):
            PretendedCuda().__enter__()
        left = torch.zeros(2, device="cuda")
        raise ZeroDivisionError
    assert torch.cuda.is_available() == there and torch.Generator().device.type == "cpu"
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with pytest.raises(AssertionError, match="outlived"):
        left + 1
    with PretendedCuda() as card:
        assert not card.events, "another card"
