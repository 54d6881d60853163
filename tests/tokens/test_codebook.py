"""The codebook report: usage, entropy, neighbours and pictures, against loops over the codes."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from helpers import refused
from PIL import Image

from figures.studies import codebook
from probes.tokens.codebook import code_pictures, codebook_report, entropy, nearest_codes
from star.base.errors import UserError
from star.codes.store import open_splits
from star.tokenizer.file import load_tokenizer
from star.tokenizer.model import decode_tokens
from viz.tokens.codebook import codebook_pictures, codebook_usage


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def store(stores):
    return open_splits(stores)["train"]


def test_usage_is_a_count_and_its_interval_the_jackknife_over_ten_groups(tokenizer, store, monkeypatch):
    monkeypatch.setattr("probes.tokens.codebook._CHUNK", 7)  # chunks that cut through the groups
    report = codebook_report(tokenizer, store)
    codes = np.asarray(store.codes[:, store.test_view])
    counts = np.array([(codes == code).sum() for code in range(tokenizer.config.codebook_size)])
    np.testing.assert_array_equal(report.counts, counts)
    assert report.used == (counts > 0).sum() and report.images == len(store)

    def direct(some):
        share = np.unique(some, return_counts=True)[1] / some.size
        return -sum(p * math.log(p) for p in share)

    left_out = np.array([direct(np.delete(codes, np.s_[group::10], axis=0)) for group in range(10)])
    value, low, high = report.entropy
    assert value == pytest.approx(direct(codes))
    # Student's t with 9 degrees of freedom: 2.262
    half = 2.262157 * math.sqrt(0.9 * np.square(left_out - left_out.mean()).sum())
    assert (low, high) == pytest.approx((value - half, value + half), rel=1e-4)
    assert report.perplexity[0] == pytest.approx(math.exp(value))
    assert entropy(np.full(8, 5)) == pytest.approx(math.log(8))
    table = report.table()
    assert table["share"].sum() == pytest.approx(1) and sorted(table["rank"]) == list(range(1, 257))
    assert table.sort_values("rank")["count"].is_monotonic_decreasing
    assert list(table.loc[report.ranked, "rank"]) == list(range(1, 257))


def test_few_images_have_no_interval(tokenizer, stores):
    report = codebook_report(tokenizer, open_splits(stores)["train"])
    assert math.isfinite(report.entropy[1])
    few = open_splits(stores)["test"]
    object.__setattr__(few, "labels", few.labels[:9])
    assert math.isnan(codebook_report(tokenizer, few).perplexity[1])


def test_the_nearest_code_is_the_one_of_largest_cosine(tokenizer, monkeypatch):
    monkeypatch.setattr("probes.tokens.codebook._CHUNK", 100)
    neighbours, cosines = nearest_codes(tokenizer)
    codes = tokenizer.quantize.embedding.weight.detach().double().numpy()
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    for code in (0, 99, 100, 255):
        others = [codes[code] @ codes[other] if other != code else -2 for other in range(256)]
        assert neighbours[code] == int(np.argmax(others))
        assert cosines[code] == pytest.approx(max(others), abs=1e-6)  # float32


def test_a_code_is_drawn_as_the_mean_of_its_decoded_cells(tokenizer, store):
    pictures = code_pictures(tokenizer, store)
    codes = torch.from_numpy(np.asarray(store.codes[:, store.test_view], dtype=np.int64))
    drawn = decode_tokens(tokenizer, codes, store.grid)
    stride = tokenizer.config.stride
    counts = np.bincount(codes.flatten().numpy(), minlength=256)
    for code in (int(counts.argmax()), int(np.flatnonzero(counts)[0])):
        cells = []
        for image, place in (codes == code).nonzero().tolist():
            row, column = (stride * n for n in divmod(place, store.grid))
            cells.append(drawn[image, row : row + stride, column : column + stride])
        np.testing.assert_array_equal(pictures[code], np.mean(cells, axis=0).round().astype(np.uint8))
    unused = np.flatnonzero(counts == 0)
    assert len(unused), "the small test tokenizer leaves codes unused"
    alone = decode_tokens(tokenizer, torch.full((1, 9), int(unused[0])), 3)[0]
    np.testing.assert_array_equal(pictures[unused[0]], alone[stride : 2 * stride, stride : 2 * stride])


def test_codes_of_another_tokenizer_are_refused(store, tokenizer_file):
    other = load_tokenizer(tokenizer_file)
    other.quantize.embedding.weight.data[0] += 1
    for report in (codebook_report, code_pictures):
        with pytest.raises(UserError, match="made by another tokenizer"):
            report(other, store)


def test_drawings(tokenizer, store):
    report = codebook_report(tokenizer, store)
    figure = codebook_usage(report.table(), perplexity=report.perplexity[0])
    figure.canvas.draw()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert not any("$" in label.get_text() for label in axis.get_ticklabels(which="both"))
    line = figure.axes[0].lines[0]
    assert len(line.get_xdata()) == report.used and line.get_ydata()[0] == pytest.approx(
        100 * report.counts.max() / report.counts.sum()
    )
    pictures = code_pictures(tokenizer, store)[:20]
    figure = codebook_pictures(pictures, pictures, range(20), [0.1] * 20, [0.5] * 20)
    assert len(figure.axes) == 40
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), pictures[1])
    with pytest.raises(UserError, match="have lengths"):
        codebook_pictures(pictures, pictures, range(3), [0.1] * 20, [0.5] * 20)


def test_the_command(star, stores, tokenizer_file, tmp_path):
    code, out, err = star("codebook", stores, "--tokenizer", tokenizer_file, "--top", "5", "--out", "c")
    assert code == 0 and "codes used in" in out and "perplexity" in out, (out, err)
    (table,) = (tmp_path / "c").glob("*.csv")
    assert len(pd.read_csv(table)) == 256
    info = json.loads(table.with_suffix(".json").read_text())
    assert info["codes_used"] <= 256 and len(info["perplexity"]) == 3
    assert len(list((tmp_path / "c").glob("*.png"))) == 2
    options = ("--tokenizer", tokenizer_file, "--out", "x")
    assert refused(star("codebook", stores, *options, "--top", "0"), "top is 0; expected 1 to 160")
    assert refused(star("codebook", "nowhere", *options), "nowhere")
    assert not (tmp_path / "x").exists()


def test_the_same_request_from_python(star, stores, tokenizer_file, tmp_path):
    asked = ("--split", "train", "--top", "5", "--out", "c")
    code, out, err = star("codebook", stores, "--tokenizer", tokenizer_file, *asked)
    assert code == 0, err
    request = codebook.Request(
        data=str(stores), tokenizer=str(tokenizer_file), split="train", top=5, out="c"
    )
    answer = asked_from_python(codebook.run, request, tmp_path / "c")
    assert len(answer.result.table) == 256 and len(answer.figures) == 2
    assert all(sentence in out for sentence in answer.sentences) and len(answer.sentences) == 2


def test_few_images_are_counted_without_an_interval(star, tokenizer_file, tmp_path):
    images = tmp_path / "images"
    for split in ("train", "test"):
        for label in range(2):
            (images / split / str(label)).mkdir(parents=True)
            for index in range(4):
                pixels = np.full((32, 32, 3), 40 * index + label, dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / str(label) / f"{index}.png")
    options = ("--tokenizer", tokenizer_file, "--out", "c")
    code, out, err = star("codebook", images, *options)
    assert code == 0 and "in 8 images; entropy" in out and "nan" not in out, (out, err)
    info = json.loads(next((tmp_path / "c").glob("*.json")).read_text())
    assert info["images"] == 8 and info["entropy_nats"][1:] == [None, None]
