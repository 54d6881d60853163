"""``star evaluate``: what is read, what is said and written, and what is refused."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from helpers import refused
from PIL import Image

from figures.studies.evaluation import Request, run
from probes.samples.extraction import extract_reference
from probes.samples.images import open_reference, open_samples
from probes.samples.networks import Features, Network
from star.base.errors import UserError
from star.classifier.config import ClassifierShape
from star.classifier.file import load_classifier, save_classifier
from star.classifier.model import new_classifier
from star.codes.store import StoreWriter
from star.images.open import open_source
from star.images.views import center_crop
from star.tokenizer.file import load_tokenizer, save_tokenizer, tokenizer_sha256


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of zero and one that was never trained; its answers differ between images."""
    path = tmp_path_factory.mktemp("classifier") / "binary.safetensors"
    model = new_classifier(ClassifierShape(size=16, classes=2, width=4), 0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.class_names = ["one", "zero"]  # in another order than the folder's: matched by name
    save_classifier(model.eval(), path, {"name": "binary", "accuracy": 0.5, "n": 2})
    return path


def digits(digit_folder, split):
    """uint8 images and labels of the folder's split, in the order of its names."""
    source = open_source(digit_folder).splits[split]
    images = np.stack([np.asarray(source.load(i)) for i in range(len(source))])
    return images, source.labels


@pytest.fixture
def samples(tmp_path, digit_folder):
    """Two sets of 20 samples in tmp_path: real training digits, and the same in other places."""
    images, labels = digits(digit_folder, "train")
    plan = {"class_names": ["one", "zero"], "sampling": {"cfg_scale": 1.5, "seed": 3}}
    for name, rows in (("a", range(20)), ("b", range(20, 40))):
        rows = [*rows]
        np.savez(tmp_path / f"{name}.npz", arr_0=images[rows], labels=labels[rows] * 0)
        (tmp_path / f"{name}.json").write_text(json.dumps(plan))
    return tmp_path


def test_the_command_and_the_notebook_say_the_same(star, samples, digit_folder, classifier):
    line = ["evaluate", "a.npz", "b.npz", "--ref", digit_folder, "--features", classifier]
    code, out, err = star(*line, "--resamples", "5", "--kid", "--density", "--infinity", "--out", "e")
    assert code == 0, err
    table = pd.read_csv(samples / "e" / "evaluate-a-binary-classifier.csv").set_index("metric")
    assert list(table.index) == [
        "FD on binary classifier features", "precision", "recall", "density", "coverage", "KID",
    ]  # fmt: skip
    assert "FD-infinity on binary classifier features: 20 samples; expected at least 200" in out
    assert "is no FID" in out and "nothing here says whether other runs" in " ".join(out.split())
    assert "20 samples; published numbers take 50,000" in " ".join(out.split())
    info = json.loads((samples / "e" / "evaluate-a-binary-classifier.json").read_text())
    assert info["samples"]["plan"]["sampling"]["cfg_scale"] == 1.5 and len(info["fingerprint"]) == 12
    assert info["reference"]["split"] == "test" and info["fingerprint"] in out
    # Conditional accuracy by hand: all were asked to be a "one".
    model = load_classifier(classifier)
    images = np.load(samples / "a.npz")["arr_0"]
    _, logits = model.features_and_logits(torch.from_numpy(images).permute(0, 3, 1, 2))
    hits = (logits.argmax(1) == 0).float().mean().item()
    classes = pd.read_csv(samples / "e" / "evaluate-a-binary-classifier-classes.csv")
    assert classes.loc[0, "accuracy"] == pytest.approx(hits) and classes.loc[1, "class"] == "one"
    request = Request(
        samples=[samples / "a.npz", samples / "b.npz"], ref=str(digit_folder), resamples=5, kid=True,
        features=str(classifier), density=True, infinity=True,
    )  # fmt: skip
    answer = asked_from_python(run, request, samples / "e")
    assert len(answer.results) == 6


def test_the_same_images_in_any_form_give_the_same_numbers(
    tmp_path, digit_folder, classifier, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    images, labels = digits(digit_folder, "train")
    images, labels = images[:12], labels[:12]
    names = open_source(digit_folder).class_names
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=labels)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=np.asfortranarray(images), labels=labels)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "folder" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    found = {}
    for name in ("a.npz", "packed.npz", "folder"):
        given = Request(
            samples=[tmp_path / name], ref=str(digit_folder), features=str(classifier), resamples=0
        )
        found[name] = run(given).result.table
        opened = open_samples(tmp_path / name)
        assert opened.count == 12 and opened.size == (32, 32)
    first = found["a.npz"]["value"].to_numpy()
    np.testing.assert_allclose(found["packed.npz"]["value"], first, rtol=1e-12)
    order = np.argsort(labels, kind="stable")  # the folder lists class by class
    np.testing.assert_array_equal(open_samples(tmp_path / "folder").labels_N, labels[order])
    np.testing.assert_allclose(found["folder"]["value"], first, rtol=1e-6)


def test_codes_are_decoded_by_their_tokenizer(stores, tokenizer_file):
    with pytest.raises(UserError, match="give --tokenizer"):
        open_samples(stores)
    found = open_samples(stores, tokenizer_file)
    assert found.facts()["tokenizer_sha256"] == tokenizer_sha256(load_tokenizer(tokenizer_file))
    assert found.split == "test" and "redraws" in found.notes[0]
    batches = [*found.batches(5)]
    assert sum(len(batch) for batch in batches) == found.count and batches[0].dtype == np.uint8
    with pytest.raises(UserError, match="no split val2"):
        open_reference(str(stores), (32, 32), split="val2", tokenizer=tokenizer_file)


def test_a_reference_of_another_size_is_cut_to_the_samples(digit_folder, tmp_path):
    found = open_reference(str(digit_folder), (16, 16), split="test")
    image = open_source(digit_folder).splits["test"].load(3)
    first = next(iter(found.batches(8)))
    np.testing.assert_array_equal(first[3], np.asarray(center_crop(image, 16)))
    assert found.crop == "ADM centre crop to 16 x 16" and found.split == "test"


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_sets_of_unequal_counts_are_set_apart(star, samples, digit_folder, classifier):
    with np.load(samples / "b.npz") as whole:
        np.savez(samples / "c.npz", arr_0=whole["arr_0"][:12])
    line = ["--ref", digit_folder, "--features", classifier, "--resamples", "2", "--out", "e"]
    said = "NOT comparable as they are: 20 samples of a, 12 of c; distances"
    code, out, err = star("evaluate", "a.npz", "c.npz", *line)
    assert code == 0 and said in " ".join(out.split()), err
    code, out, err = star("evaluate", "a.npz", "b.npz", *line)
    assert code == 0 and "NOT comparable" not in out, err


def test_samples_that_are_none_are_refused(star, tmp_path, digit_folder, classifier):
    images = np.zeros((4, 16, 16, 3), np.uint8)
    cases = {
        npz("float.npz", arr_0=images / 255.0): "arr_0 is float64",
        npz("nan.npz", arr_0=np.full((4, 16, 16, 3), np.nan, np.float32)): "arr_0 is float32",
        npz("first.npz", arr_0=images.transpose(0, 3, 1, 2)): "expected uint8 (images, height, width",
        npz("one.npz", arr_0=images[:1]): "holds 1 images; expected at least 2",
        npz("other.npz", images=images): "has no array arr_0",
        npz("labels.npz", arr_0=images, labels=np.zeros(3, int)): "expected a whole number for each",
        npz("negative.npz", arr_0=images, labels=np.arange(-2, 2)): "labels holds -2; expected labels",
        npz("objects.npz", arr_0=np.array([{}, {}], dtype=object)): "pickled objects",
    }  # fmt: skip
    whole = npz("whole.npz", arr_0=np.random.default_rng(0).integers(0, 256, images.shape, np.uint8))
    content = (tmp_path / whole).read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    cases["cut.npz"] = "truncated"
    cases["nowhere.npz"] = "no such file"
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, side in (("a", 16), ("b", 18)):
        Image.new("RGB", (side, side)).save(folder / f"{name}.png")
    cases["mixed"] = "images of several sizes"
    line = ["--ref", digit_folder, "--features", classifier, "--out", "e"]
    for path, message in cases.items():
        assert refused(star("evaluate", path, *line), message), path
    assert not (tmp_path / "e").exists() or not [*(tmp_path / "e").iterdir()]
    for options, message in (
        ([], "--ref is missing"),
        (["--ref", digit_folder, "--resamples", "-1"], "resamples is -1"),
        (["--ref", digit_folder, "--inception", classifier], "is not torch-fidelity's Inception"),
        (["--ref", "whole.npz", "--split", "test"], "has no splits"),
        (["--ref", digit_folder, "--features", "nothing"], "no such file"),
    ):
        assert refused(star("evaluate", "whole.npz", *options), message), options
    assert refused(star("evaluate"), "no samples are given")
    assert refused(star("evaluate", "whole.npz", "whole.npz", *line), "given twice")


def test_statistics_of_inception_do_not_serve_another_network(star, tmp_path, classifier):
    npz("s.npz", arr_0=np.zeros((4, 16, 16, 3), np.uint8))
    npz("r.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    code = star("evaluate", "s.npz", "--ref", "r.npz", "--features", classifier)
    assert refused(code, "holds Inception's statistics and no images")


def test_lossy_samples_and_unbalanced_classes_are_named(star, tmp_path, digit_folder, classifier):
    images, _ = digits(digit_folder, "train")
    for index, name in enumerate(["one"] * 3 + ["zero"] * 5):
        folder = tmp_path / "jpg" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(folder / f"{index}.jpg")
    code, out, _ = star(
        "evaluate", "jpg", "--ref", digit_folder, "--features", classifier, "--resamples", "0"
    )
    text = " ".join(out.split())
    assert code == 0 and "8 of 8 samples are JPEG" in text
    assert "classes are not balanced: 3 to 5 samples a class" in text


def test_codes_under_another_tokenizer_are_other_images_to_the_cache(tmp_path, tokenizer_file):
    """Imported codes do not say which tokenizer made them: what is kept must not be mixed up."""
    model = load_tokenizer(tokenizer_file)
    other = copy.deepcopy(model)
    other.quantize.embedding.weight.data.neg_()
    save_tokenizer(other, tmp_path / "other.safetensors", {})
    writer = StoreWriter(tmp_path / "codes" / "train", images=4, views=1, tokens=4)
    writer.add(np.arange(16, dtype=np.uint16).reshape(4, 1, 4), np.arange(4) % 2)
    writer.finish({
        "vocab_size": model.config.codebook_size, "grid": 2, "class_names": ["a", "b"],
        "view_names": ["plain"], "test_view": 0, "tokenizer_sha256": "", "source": {"name": "x"},
    })  # fmt: skip

    def extracted(images):
        return Features(images.float().mean((2, 3)).numpy())

    network, kept = Network("means", "0", "none", extracted), []
    for file in (tokenizer_file, tmp_path / "other.safetensors"):
        images = open_samples(tmp_path / "codes", file)
        kept.append(extract_reference(network, images).kept_MD)
    assert not np.array_equal(*kept)
