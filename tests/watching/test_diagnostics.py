"""Diagnostics inside training: kNN, rank, cosines, the warning, and that they disturb nothing."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from fresh import in_two
from helpers import fake_store, small_model
from small_runs import CPU, rows, timeless, tiny
from two_processes import one_of_two

from probes.linear.knn import knn_predict
from probes.reading.images import draw
from probes.representation.geometry import effective_rank, image_cosine, is_collapsed, row_cosine
from probes.watching.diagnostics import in_loop_diagnostics
from probes.watching.gradients import gradient_cosines
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.parallel import processes as distributed
from star.training.batches import TrainLoader
from star.training.config import ObjectiveConfig
from star.training.objective import compute_losses
from star.training.student import Student
from star.training.teacher import Teacher
from star.training.trainer import Trainer


@pytest.fixture
def stores():
    return {"train": fake_store(), "val": fake_store(images=8, views=1, seed=5)}


def diagnose(trainer):
    return in_loop_diagnostics(
        trainer.learner.student, trainer.learner.teacher, trainer.stores, trainer.config
    )


def cosine(a, b):
    """Of two plain lists of numbers."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_knn_against_a_loop():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 5))
    labels = rng.integers(0, 3, 40)
    reference = (centres[labels] + rng.normal(size=(40, 5))).astype(np.float32)
    queries = rng.normal(size=(30, 5)).astype(np.float32)
    expected = []
    for query in queries:
        near = sorted(
            ((cosine(query, other), label) for other, label in zip(reference, labels, strict=True)),
            reverse=True,
        )
        votes = {}
        for similarity, label in near[:7]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / 0.07)
        expected.append(max(sorted(votes), key=votes.get))
    # Classes are compared, not numbers: no tolerance. Batches must not change anything.
    for batch_size in (4, 1024):
        found = knn_predict(reference, labels, queries, k=7, batch_size=batch_size)
        assert found.tolist() == expected
    assert len(set(expected)) == 3


def test_knn_weighs_near_neighbours_more_than_many():
    # One neighbour at cosine 1 against two at cosine 0.8: exp(0.2 / 0.07) = 17 times the weight.
    reference = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6]], dtype=np.float32)
    query = np.array([[2, 0]], dtype=np.float32)
    labels = np.array([1, 0, 0])
    assert knn_predict(reference, labels, query, k=3).tolist() == [1]
    assert knn_predict(reference, labels, query, k=3, temperature=10.0).tolist() == [0]
    for k in (0, 4):
        with pytest.raises(UserError, match=f"k is {k}; expected 1 to 3"):
            knn_predict(reference, labels, query, k=k)
    with pytest.raises(UserError, match="temperature is 0"):
        knn_predict(reference, labels, query, k=1, temperature=0.0)


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 6)))[0] for n in (20, 9))
    for values in ([1.0] * 6, [5.0, 1, 1, 0.5, 0.1, 0.01], [3.0, 0, 0, 0, 0, 0]):
        shares = [value / sum(values) for value in values]
        expected = math.exp(-sum(share * math.log(share) for share in shares if share))
        features = left @ np.diag(values) @ right.T
        # float64 throughout; singular values of 1e-16 instead of 0 add 1e-14 to the entropy.
        assert effective_rank(features) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(np.zeros((4, 3))) == 0.0


def test_cosines_against_loops():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(7, 5)).astype(np.float32) + 0.5 for _ in range(2))
    pairs = [cosine(a[i], a[j]) for i in range(7) for j in range(7) if i != j]
    # float64 inside, the loop too: only the order of the sums differs.
    assert image_cosine(a) == pytest.approx(np.mean(pairs), rel=1e-6)
    same = [cosine(x, y) for x, y in zip(a, b, strict=True)]
    assert row_cosine(a, b) == pytest.approx(np.mean(same), rel=1e-6)


def test_each_way_to_collapse_is_seen():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(300, 256))
    point = np.ones(256) + 0.009 * cloud  # wide enough for the noise to have a rank of its own
    line = rng.normal(size=(300, 1)) * np.ones(256) + 1e-3 * cloud
    found = {
        name: (effective_rank(x), image_cosine(x))
        for name, x in (("cloud", cloud), ("point", point), ("line", line), ("shifted", cloud + 3))
    }
    assert {name: is_collapsed(*numbers) for name, numbers in found.items()} == {
        "cloud": False, "point": True, "line": True, "shifted": False,
    }  # fmt: skip
    assert found["line"][1] < 0.5 and found["point"][0] > 2, "each number sees one of the two"


def pair(objective):
    student = Student(small_model(seed=1), objective)
    student.projector.initialize(torch_generator(0, "projector"))
    return student, Teacher(small_model(seed=2), decay=0.9, warmup=False)


def test_gradient_cosines_against_one_backward_pass_a_term():
    objective = ObjectiveConfig(contrast_steps=3, contrast_layer=2)
    student, teacher = pair(objective)
    batch = TrainLoader(fake_store(), tiny(objective=objective)).batch(0)
    found = gradient_cosines(student, teacher, batch, objective)
    assert all(parameter.grad is None for parameter in student.parameters())
    gradients = {}
    for name in ("ar", "mim", "step_contrast", "view_contrast"):
        student.zero_grad()
        # Eq. 8's weights are positive and must cancel.
        (0.25 * compute_losses(student, teacher, batch, objective)[1][name]).backward()
        gradients[name] = [
            value
            for parameter in student.model.parameters()
            for value in (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            ).flatten().tolist()
        ]  # fmt: skip
    names = list(gradients)
    assert list(found) == [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for (a, b), value in found.items():
        # Products rounded to float32, sums exact.
        assert value == pytest.approx(cosine(gradients[a], gradients[b]), abs=1e-6), (a, b)
    assert gradient_cosines(student, teacher, batch, objective.baseline()) == {}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_held_in_pieces_that_do_not_change_the_cosines(monkeypatch, recompute):
    objective = ObjectiveConfig(contrast_steps=3, contrast_layer=2)
    student, teacher = pair(objective)
    student.recompute = recompute
    batch = TrainLoader(fake_store(), tiny(objective=objective)).batch(0)
    expected = gradient_cosines(student, teacher, batch, objective)
    weights = list(student.model.parameters())
    most = 4 * 4 * 3000  # bytes of four terms' gradients of 3,000 weights
    monkeypatch.setattr("probes.watching.gradients.MOST_BYTES", most)
    asked, original = [], torch.autograd.grad

    def watched(term, inputs, **options):
        asked.append(inputs)
        return original(term, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    found = gradient_cosines(student, teacher, batch, objective)
    pieces = asked[::4]
    assert [id(w) for piece in pieces for w in piece] == [id(w) for w in weights]
    sizes = [4 * sum(w.nbytes for w in piece) for piece in pieces]
    assert len(pieces) > 3
    assert all(size <= most or len(p) == 1 for size, p in zip(sizes, pieces, strict=True))
    # A layer's gradient is the same sum whether or not those below it are asked for.
    assert found == pytest.approx(expected, rel=1e-6)


def test_recomputed_activations_give_the_same_cosines(stores, tmp_path):
    kept, recomputed = (
        diagnose(Trainer(tiny(checkpoint_activations=value), stores, tmp_path, CPU))
        for value in (False, True)
    )
    assert recomputed == kept and "grad_cos_step_view" in kept


def test_a_gradient_of_length_zero_has_no_cosine():
    objective = ObjectiveConfig(contrast_weight=0.0, mask_ratio=0.0, mim_distance="l2")
    student = Student(small_model(), objective)
    teacher = Teacher(student.model, decay=0.9, warmup=False)
    batch = TrainLoader(fake_store(), tiny(objective=objective)).batch(0)
    # Student and teacher agree exactly: L_MIM is at its minimum.
    assert gradient_cosines(student, teacher, batch, objective) == {}
    teacher = Teacher(small_model(seed=2), decay=0.9, warmup=False)
    assert list(gradient_cosines(student, teacher, batch, objective)) == [("ar", "mim")]


def test_drawn_images_are_of_the_split_the_seed_and_the_classes():
    store = fake_store(images=40, classes=8)
    images = draw(store, 10, 0, "images", classes=np.array([1, 5]))
    assert len(images) == 10 and set(images.labels) == {1, 5}
    again = draw(store, 10, 0, "images", classes=np.array([1, 5]))
    other = draw(store, 10, 1, "images", classes=np.array([1, 5]))
    # Ten of ten images in the store's order: the seed has no choice.
    assert np.array_equal(images.codes, again.codes) and np.array_equal(images.codes, other.codes)
    few = [draw(store, 10, seed, "images", classes=np.arange(8)).codes for seed in (0, 0, 1)]
    assert np.array_equal(few[0], few[1]) and not np.array_equal(few[0], few[2])
    everything = draw(store, 1000, 0, "images", classes=np.arange(8))
    assert np.array_equal(everything.codes[:, 0], store.codes[:, store.test_view])


def test_the_numbers_of_a_run(stores, tmp_path):
    trainer = Trainer(tiny(), stores, tmp_path, CPU)
    trainer.fit(stop_after=6)
    row = diagnose(trainer)
    steps = [1, 2, 3, 4, 6, 7, 8, 9]  # uniform_steps(9, 8)
    by_step = [row[f"knn_acc_step_{step}"] for step in steps]
    assert row["knn_acc"] == pytest.approx(np.mean(by_step))
    assert all(0 <= value <= 1 for value in by_step)
    terms = ("ar", "mim", "step", "view")
    expected = {f"grad_cos_{a}_{b}" for i, a in enumerate(terms) for b in terms[i + 1 :]}
    assert {key for key in row if key.startswith("grad_cos_")} == expected
    others = {"attention_distance", "class_share", "effective_rank", "image_cosine"}
    assert others < set(row) and 0 < row["teacher_student_cosine"] <= 1
    assert row["collapsed"] is False
    json.dumps(row, allow_nan=False)


def test_numbers_that_cannot_be_measured_are_left_out(stores, tmp_path):
    config = tiny(objective=ObjectiveConfig().baseline())
    row = diagnose(Trainer(config, {"train": stores["train"]}, tmp_path, CPU))
    assert not any(key.startswith(("knn", "grad_cos")) for key in row)
    assert {"effective_rank", "attention_distance", "collapsed"} <= set(row)
    one = {"train": stores["train"], "val": fake_store(images=1, views=1)}
    row = diagnose(Trainer(config, one, tmp_path, CPU))
    assert row["knn_acc"] in (0.0, *np.arange(1, 9) / 8) and "collapsed" not in row
    json.dumps(row, allow_nan=False)


def test_of_many_classes_a_few_are_drawn(tmp_path):
    train = fake_store(images=300, classes=50)
    stores = {"train": train, "val": fake_store(images=100, views=1, classes=50, seed=5)}
    config = tiny().fitted_to(grid=3, vocab_size=11, num_classes=50)
    row = diagnose(Trainer(config, stores, tmp_path, CPU))
    assert row["knn_acc"] > 0.2, "each class has its own pattern; 1 in 20 is chance"


def collapse(trainer, way):
    """Make the student's features the same for all images, or multiples of one vector."""
    model = trainer.learner.student.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("wo.weight", "w2.weight")):
                parameter.zero_()
        table = model.tok_embeddings.weight
        signs = torch.where(torch.arange(len(table)) % 2 == 0, 1.0, -1.0)[:, None]
        scale = 1.0 if way == "point" else signs * torch.linspace(0.5, 2, len(table))[:, None]
        table.copy_(scale * torch.ones_like(table) + 1e-3 * table)
        model.cls_embedding.embedding_table.weight.copy_(torch.ones(model.config.width))


@pytest.mark.parametrize("way", ["point", "line"])
def test_a_collapsed_model_is_reported(stores, tmp_path, way):
    trainer = Trainer(tiny(), stores, tmp_path, CPU)
    assert diagnose(trainer)["collapsed"] is False
    collapse(trainer, way)
    row = diagnose(trainer)
    # At step 1 all images have seen the null class alone.
    assert row["collapsed"] is True, row


def losses(run):
    return [{k: v for k, v in timeless(row).items() if k in LOSSES} for row in rows(run)]


LOSSES = (
    "step", "loss", "ar", "mim", "step_contrast", "view_contrast", "grad_norm", "val_nll",
    "val_nll_student",
)  # fmt: skip


def test_diagnostics_disturb_nothing_and_come_when_they_should(stores, tmp_path):
    config = tiny(diagnose_every=5)
    Trainer(tiny(), stores, tmp_path / "without", CPU).fit()

    def watched(trainer):
        before = torch.get_rng_state()
        row = diagnose(trainer)
        assert torch.equal(torch.get_rng_state(), before)
        return row

    Trainer(config, stores, tmp_path / "with", CPU).fit(diagnose=watched)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    a, b = (torch.load(tmp_path / name / "ckpt.pt", weights_only=True) for name in ("with", "without"))
    assert all(torch.equal(a["student"][key], b["student"][key]) for key in a["student"])
    measured = [row["step"] for row in rows(tmp_path / "with") if "effective_rank" in row]
    assert measured == [5, 10, 12], "every fifth step and the last"


def test_a_step_that_is_only_diagnosed_has_a_row_and_none_is_made_when_off(stores, tmp_path):
    config = tiny(diagnose_every=5, log_every=100, validate_every=100)
    Trainer(config, stores, tmp_path / "on", CPU).fit(diagnose=diagnose)
    assert [row["step"] for row in rows(tmp_path / "on")] == [1, 5, 10, 12]
    off = dataclasses.replace(config, diagnose_every=0)
    Trainer(off, stores, tmp_path / "off", CPU).fit(diagnose=diagnose)
    Trainer(config, stores, tmp_path / "none", CPU).fit()
    for run in ("off", "none"):
        assert [row["step"] for row in rows(tmp_path / run)] == [1, 12]
        assert not any("effective_rank" in row for row in rows(tmp_path / run))


def test_a_resumed_run_repeats_its_diagnostics(stores, tmp_path):
    config = tiny(diagnose_every=4)
    Trainer(config, stores, tmp_path / "straight", CPU).fit(diagnose=diagnose)
    Trainer(config, stores, tmp_path / "parts", CPU).fit(stop_after=6, diagnose=diagnose)
    Trainer.resume(tmp_path / "parts", stores, CPU).fit(diagnose=diagnose)
    straight, parts = (
        [timeless(row) for row in rows(tmp_path / name)] for name in ("straight", "parts")
    )
    assert parts == straight and sum("effective_rank" in row for row in parts) == 3


def two_stores():
    return {"train": fake_store(), "val": fake_store(images=8, views=1, seed=5)}


TWO = tiny(diagnose_every=2, max_steps=2, dropout=0.0, lr=1e-3)


def measure_in_one_of_two(rank: int, folder, shard: bool):
    with one_of_two(rank, f"{folder}/rendezvous", sharded=shard):
        trainer = Trainer(dataclasses.replace(TWO, shard=shard), two_stores(), folder / "two", CPU)
        numbers = []

        def as_if_alone(trainer):
            assert distributed.world_size() == 1 and distributed.rank() == 0
            numbers.append(diagnose(trainer))
            return numbers[-1]

        trainer.fit(diagnose=as_if_alone)
        assert distributed.world_size() == 2 and distributed.rank() == rank
        (folder / f"rank{rank}.json").write_text(json.dumps(numbers[-1]))
        del trainer  # it holds the process group


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_measure_what_one_does(stores, tmp_path, shard):
    in_two(measure_in_one_of_two, tmp_path, shard)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    Trainer(TWO, stores, tmp_path / "one", CPU).fit(diagnose=diagnose)
    one, two = (rows(tmp_path / name)[-1] for name in ("one", "two"))
    expected = {key for key in one if key in found[0]}
    assert found[0] == found[1] == {key: two[key] for key in expected}
    missing = {key for key in one if key not in two}
    assert missing == ({key for key in one if key.startswith("grad_cos")} if shard else set())
    for key in expected:
        # After two steps of AdamW on gradients summed in another order: 2e-7 was seen.
        assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
