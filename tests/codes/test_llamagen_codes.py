"""LlamaGen's code files: a round trip to equal bytes, and one line for every thing that is wrong."""

import numpy as np
import pytest
from helpers import refused

from star.codes.imagenet import imagenet_warning, label_warning
from star.codes.store import open_codes


def write(root, *, images=6, views=10, tokens=16, seed=0, name="imagenet64"):
    """Files as ``extract_codes_c2i.py`` saves them: codes (1, views, T) and labels (1,), int64."""
    rng = np.random.default_rng(seed)
    for kind in ("codes", "labels"):
        (root / f"{name}_{kind}").mkdir(parents=True)
    for image in range(images):
        codes = rng.integers(0, 256, (1, views, tokens))
        np.save(root / f"{name}_codes" / f"{image}.npy", codes)
        np.save(root / f"{name}_labels" / f"{image}.npy", np.array([image % 3]))
    return root


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.npy"))}


@pytest.mark.parametrize("views", [10, 2])
def test_a_round_trip_gives_the_same_bytes(star, tmp_path, views):
    files = write(tmp_path / "codes", views=views)
    code, out, err = star("codes", "import", files, "store", "--vocab-size", 256)
    assert code == 0, err
    assert "3 of ImageNet's 1000 classes" in out and "6 images" in out
    store = open_codes(tmp_path / "store" / "train")
    store.verify()
    assert store.codes.shape == (6, views, 16) and store.num_classes == 1000
    assert store.test_view == (4 if views == 10 else 0) and store.tokenizer_sha256 == ""
    assert store.labels.tolist() == [0, 1, 2, 0, 1, 2]
    code, out, err = star("codes", "export", "store", "back")
    assert code == 0, err
    assert content(tmp_path / "back") == content(files)
    assert '"flip"' in out
    assert {path.name for path in tmp_path.iterdir()} == {"codes", "store", "back"}


def test_two_crop_ranges_in_one_store_and_back(star, tmp_path):
    first, second = (write(tmp_path / n, seed=s) for s, n in enumerate(("ten_crop", "ten_crop_105")))
    code, _, err = star("codes", "import", first, "store", "--also", second, "--vocab-size", 256)
    assert code == 0, err
    store = open_codes(tmp_path / "store" / "train")
    assert store.views == 20 and store.view_names[14] == "1.05-centre" and store.test_view == 4
    assert np.array_equal(
        store.codes[3, 10:], np.load(second / "imagenet64_codes" / "3.npy")[0].astype(np.uint16)
    )
    assert star("codes", "export", "store/train", "back")[0] == 0
    for name, files in (("ten_crop", first), ("ten_crop_105", second)):
        assert content(tmp_path / "back" / name) == content(files)


def test_an_imported_store_trains_and_its_tokenizer_can_be_named(star, tmp_path, tokenizer_file):
    files = write(tmp_path / "codes", images=12)
    train = ("train", "--layers", 1, "--width", 32, "--heads", 2, "--batch-size", 4, "--max-steps", 1,
             "--warmup-steps", 0, "--device", "cpu", "--precision", "fp32")  # fmt: skip
    assert star("codes", "import", files, "unknown", "--vocab-size", 256)[0] == 0
    code, _, err = star(*train, "--data", "unknown", "--run", "run", "--tokenizer", tokenizer_file)
    assert code == 0, err
    code, _, err = star("codes", "import", files, "known", "--tokenizer", tokenizer_file)
    assert code == 0, err
    store = open_codes(tmp_path / "known" / "train")
    assert len(store.tokenizer_sha256) == 64 and store.vocab_size == 256
    assert (tmp_path / "known" / "tokenizer.safetensors").is_file()


def spoil(root, what):
    codes, labels = root / "imagenet64_codes", root / "imagenet64_labels"
    if what == "hole":
        (codes / "3.npy").unlink()
    elif what == "label hole":
        (labels / "5.npy").unlink()
    elif what == "no labels":
        labels.rename(root / "elsewhere")
    elif what == "shape":
        np.save(codes / "4.npy", np.zeros((10, 16), np.int64))
    elif what == "mixed":
        np.save(codes / "4.npy", np.zeros((1, 10, 25), np.int64))
    elif what == "not square":
        np.save(codes / "0.npy", np.zeros((1, 10, 15), np.int64))
    elif what == "range":
        np.save(codes / "4.npy", np.full((1, 10, 16), 256))
    elif what == "negative":
        np.save(codes / "4.npy", np.full((1, 10, 16), -1))
    elif what == "float":
        np.save(codes / "4.npy", np.zeros((1, 10, 16)))
    elif what == "cut":
        (codes / "4.npy").write_bytes((codes / "4.npy").read_bytes()[:150])
    elif what == "pickle":
        np.save(codes / "4.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif what == "label":
        np.save(labels / "2.npy", np.array([1, 2]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("hole", "no 3.npy"),
        ("label hole", "no 5.npy"),
        ("no labels", "imagenet64_labels is missing"),
        ("shape", "4.npy is int64 (10, 16); expected int64 (1, 10, 16)"),
        ("mixed", "4.npy is int64 (1, 10, 25)"),
        ("not square", "T a square"),
        ("range", "4.npy has code 256; the codebook has entries 0 to 255"),
        ("negative", "4.npy has code -1"),
        ("float", "4.npy is float64"),
        ("cut", "cannot read"),
        ("pickle", "cannot read"),
        ("label", "2.npy is int64 (2,); expected a class"),
    ],
)
def test_what_is_wrong_with_the_files_is_one_line(star, tmp_path, what, message):
    files = write(tmp_path / "codes")
    spoil(files, what)
    assert refused(star("codes", "import", files, "store", "--vocab-size", 256), message)
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_other_mistakes(star, tmp_path):
    files, short = write(tmp_path / "a"), write(tmp_path / "b", images=5)
    three = write(tmp_path / "c", views=3)
    assert refused(star("codes", "import", "nowhere", "s"), "cannot list nowhere")
    assert refused(
        star("codes", "import", tmp_path, "s"), "holds a, b, c; expected", "imagenet256_codes"
    )
    assert refused(star("codes", "import", files, "s", "--also", short), "has 5 images")
    assert refused(star("codes", "import", three, "s"), "has 3 views an image; expected 10")
    assert refused(star("codes", "import", files, "s", "--vocab-size", 70000), "hold 1 to 65536")
    assert star("codes", "import", files, "s", "--vocab-size", 256)[0] == 0
    assert refused(star("codes", "export", "s", "a"), "a exists; choose another folder")
    assert refused(star("codes", "export", "s", "x", "--dataset", "a/b"), "dataset is 'a/b'")


def test_warnings_of_classes_that_are_not_imagenets():
    inner = [f"n{number:08d}" for number in range(1500000, 1500998)]
    synsets = ["n01440764", *inner, "n15075141"]
    assert imagenet_warning(synsets) is None
    assert imagenet_warning(("cat", "dog")) is None and imagenet_warning(()) is None
    assert "another than their sorted order" in imagenet_warning(synsets[::-1])
    assert "100 synsets, not ImageNet's 1000" in imagenet_warning(synsets[:100])
    assert "not those of ImageNet's 2012" in imagenet_warning(["n00000001", *synsets[1:]])
    assert label_warning(np.arange(1000)) is None
    assert "label 1000, ImageNet has 0 to 999" in label_warning(np.arange(1001))
    assert "999 of ImageNet's 1000" in label_warning(np.arange(999))
