"""Fewer references than DINO's 20 neighbours: what is recorded, printed and drawn is the k used."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import fake_store, small_model

from cli.terminal.training import COLUMNS, _heading
from figures.said.probing import atlas_said
from figures.studies.measures import measures_said
from probes.linear.atlas import Atlas
from probes.linear.knn import voters
from probes.linear.protocols import describe_protocol
from probes.representation.measures import measure
from probes.results import Result
from probes.watching.diagnostics import in_loop_diagnostics
from star.model.config import ModelConfig
from star.training.config import ObjectiveConfig, TrainConfig
from star.training.student import Student
from star.training.teacher import Teacher
from viz.measures import measure_figures
from viz.training import training_curves

CONFIG = ModelConfig(layers=2, heads=2, width=16, grid=4, vocab_size=11, num_classes=4)


def test_all_vote_where_there_are_fewer():
    assert [voters(count) for count in (1, 7, 20, 21, 50_000)] == [1, 7, 20, 20, 20]


def test_the_protocol_says_its_k():
    said = "nearest neighbours by cosine, weights exp(s / 0.07) (DINO)"
    few, many = describe_protocol("knn", 7), describe_protocol("knn", 5000)
    assert (few["neighbours"], few["protocol_said"]) == (7, f"7 {said}")
    assert (many["neighbours"], many["protocol_said"]) == (20, f"20 {said}")
    assert "neighbours" not in describe_protocol("ridge", 7)


def test_the_printed_title_of_a_probe_has_it():
    row = {
        "control": "none",
        "layer": 1,
        "step": 2,
        "seed": 0,
        "accuracy": 0.5,
        "low": 0.3,
        "high": 0.7,
    }
    table = pd.DataFrame([{**row, "val_accuracy": np.nan, "at_edge": False}])
    info = {
        **describe_protocol("knn", 7),
        "seeds": [0], "splits": {"images": {"test": 4}}, "pixels": "source", "chance": 0.5,
        "random_weights": "drawn",
    }  # fmt: skip
    atlas = Atlas(Result(table, info), np.zeros((1, 1, 1, 4)), np.zeros(4), [])
    assert atlas_said(atlas, "AR", ("one", "two"))[0].title == "AR: knn, k = 7, 4 test images, %"


@pytest.mark.parametrize(("images", "references", "k"), [(7, 2000, 7), (50, 12, 12), (50, 2000, 20)])
def test_measures_record_print_and_draw_it(images, references, k):
    stores = [fake_store(images=count, views=1, grid=4, seed=count) for count in (24, images)]
    for store in stores:
        store.view_names = ("centre",)
    options = {"layers": [1], "steps": [4, 16], "names": ["knn"], "train": stores[1]}
    found = measure(small_model(CONFIG), stores[0], images=24, references=references, **options)
    assert found.info["knn"] == {"references": min(images, references), "k": k}
    assert measures_said(found, "AR")[-1].endswith(f"(DINO's protocol), k = {k}")
    figures = dict(measure_figures(found.table, total_steps=16, votes=k))
    title = figures["knn"].axes[0].get_title(loc="left")
    assert title == f"Nearest-neighbour classification, k = {k}, layer 1"


@pytest.mark.parametrize(("images", "k"), [(7, 7), (24, None)])
def test_diagnostics_record_it_where_it_is_unusual(images, k):
    objective = ObjectiveConfig().baseline()
    config = TrainConfig(batch_size=4, objective=objective, model=CONFIG)
    stores = {"train": fake_store(images=images, grid=4), "val": fake_store(images=8, views=1, grid=4)}
    student = Student(small_model(CONFIG), objective)
    teacher = Teacher(student.model, decay=0.9, warmup=False)
    row = in_loop_diagnostics(student, teacher, stores, config, torch.float32)
    assert row.get("knn_k") == k and "knn_acc" in row
    assert _heading("knn_acc", [{}, row]) == ("kNN" if k is None else "kNN (k 7)")
    assert _heading("loss", [row]) == COLUMNS["loss"]
    rows = pd.DataFrame([{"step": 1, "loss": 5.0}, {"step": 2, **row}])
    titles = [axes.get_title(loc="left") for axes in training_curves({"AR": rows}).axes]
    assert "kNN accuracy, mean over steps" + ("" if k is None else ", k = 7") in titles
