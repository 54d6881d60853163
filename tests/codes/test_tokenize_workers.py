"""Worker processes of star tokenize: the same bytes, clear ends, nobody left behind; and bad images."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, refused
from PIL import Image

from star.base.errors import UserError
from star.base.files import sha256_file
from star.codes.store import open_codes
from star.codes.view_batches import view_batches
from star.images.open import load_image, open_source
from star.images.views import view_set


@pytest.fixture
def folder(tmp_path):
    """12 + 4 images of 24 x 20 pixels in 2 classes."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("ant", "bee"):
            for index in range(images):
                path = tmp_path / "set" / split / name / f"{index:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


def command(folder, out, tokenizer, *options):
    return (
        "tokenize",
        folder,
        out,
        "--tokenizer",
        tokenizer,
        "--device",
        "cpu",
        "--size",
        16,
        *options,
    )


def hashes(folder):
    return {str(file.relative_to(folder)): sha256_file(file) for file in folder.glob("*/*.npy")}


@pytest.mark.parametrize("views", ["ten-crop-1.1+1.05", "random-crop-3"])
def test_the_bytes_do_not_depend_on_the_workers(star, tmp_path, folder, tokenizer_file, views):
    for workers in (0, 1, 3):
        run = command(folder, f"w{workers}", tokenizer_file, "--views", views, "--workers", workers)
        code, _, err = star(*run, "--batch-size", 40)
        assert code == 0, err
    first = hashes(tmp_path / "w0")
    assert len(first) == 6
    assert hashes(tmp_path / "w1") == first and hashes(tmp_path / "w3") == first


def batches(folder, **options):
    options = {"first": 0, "count": 2, "workers": 2, "skip_bad": False, "max_megapixels": 1, **options}
    return view_batches(open_source(folder).splits["train"], view_set("plain", 16), **options)


def test_batches_come_in_order_and_start_anywhere(folder):
    for workers in (0, 2):
        rows = [batch.rows for batch in batches(folder, workers=workers, first=3, count=4)]
        assert rows == [[3, 4, 5, 6], [7, 8, 9, 10], [11]]


def test_a_worker_that_is_killed_is_one_clear_error(folder, monkeypatch):
    def die(self, index, max_megapixels):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("star.images.source.Split.load", die)  # the workers are forked after this
    with pytest.raises(UserError, match=r"a process that decodes images ended by itself \(pid \d+"):
        list(batches(folder))


def test_a_bad_image_ends_workers_with_the_same_words(folder):
    (folder / "train" / "ant" / "01.png").write_text("text")
    said = []
    for workers in (0, 2):
        with pytest.raises(UserError) as caught:
            list(batches(folder, workers=workers))
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1] and "01.png (it is no image): remove it or pass --skip-bad" in said[0][1]
    found = list(batches(folder, skip_bad=True))
    assert [batch.skipped for batch in found][:2] == [["train/ant/01.png"], []]
    assert sum(len(batch.rows) for batch in found) == 11


SLOW = """
import sys, time
from star.images.source import Split
real = Split.load
def load(self, *arguments):
    time.sleep(0.15)
    return real(self, *arguments)
Split.load = load
from cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_leaves_no_process_and_whole_state(tmp_path, folder, tokenizer_file, number, group):
    arguments = command(folder, tmp_path / "out", tokenizer_file, "--workers", 2, "--batch-size", 20)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    progress = tmp_path / "out.partial" / "train" / "progress.json"
    for _ in range(6000):
        if progress.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert b"Traceback" not in err
    for _ in range(2000):  # workers that nobody waits for look for their parent every 5 seconds
        if not alive(process.pid):
            break
        time.sleep(0.05)
    assert not alive(process.pid)
    assert progress.exists() and not (tmp_path / "out").exists()
    go_on = [sys.executable, "-m", "cli.main", *map(str, arguments[:-4]), "--batch-size", "20"]
    done = subprocess.run(go_on, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "going on with the work" in done.stdout, done.stderr
    for split in ("train", "val", "test"):
        open_codes(tmp_path / "out" / split).verify()


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def bad_images(root):
    """Files that are odd but usable, by name; what is expected of each is in the test."""
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 255, (31, 17, 3), dtype=np.uint8))
    noise.crop((0, 0, 1, 1)).save(root / "1x1.png")
    noise.crop((0, 0, 3, 2)).save(root / "smaller-than-a-cell.png")
    noise.save(root / "odd.png")
    Image.fromarray(rng.integers(0, 65535, (20, 20), dtype=np.uint16)).save(root / "16-bit.png")
    noise.convert("CMYK").save(root / "cmyk.jpg")
    noise.convert("P").save(root / "palette.png")
    frames = [noise, noise.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    for name in ("animated.gif", "animated.webp", "animated.png"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_images_are_taken_and_animations_noted(star, folder, tmp_path, tokenizer_file, workers):
    bad_images(folder / "train" / "ant")
    code, out, err = star(*command(folder, "out", tokenizer_file, "--workers", workers))
    assert code == 0, err
    assert "train: 21 images" in out
    names = [f"train/ant/animated.{suffix}" for suffix in ("gif", "png", "webp")]
    assert f"first frame only: {', '.join(names)}" in out
    assert open_codes(tmp_path / "out" / "train").animated == names


def test_only_the_first_frame_is_read(tmp_path):
    first, second = (Image.new("RGB", (8, 8), color) for color in ((200, 0, 0), (0, 0, 200)))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    image = load_image(tmp_path / "a.gif")
    assert image.info["frames"] == 2 and np.asarray(image)[0, 0].tolist() == [200, 0, 0]
    first.save(tmp_path / "b.gif")
    assert "frames" not in load_image(tmp_path / "b.gif").info


@pytest.mark.parametrize("what", ["empty", "truncated", "huge"])
def test_unusable_images_are_refused_by_name(star, folder, tmp_path, tokenizer_file, what):
    path = folder / "train" / "ant" / "01.png"
    if what == "empty":
        path.write_bytes(b"")
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.new("1", (10_001, 10_000)).save(path)
    run = command(folder, "out", tokenizer_file)
    message = (
        "01.png has 10001 x 10000 pixels; at most 100 megapixels" if what == "huge" else "01.png ("
    )
    assert refused(star(*run), message, "--skip-bad")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    code, out, err = star(*run, "--skip-bad")
    assert code == 0 and "skipped: train/ant/01.png" in out, err


def test_large_images_are_read_when_asked_for(star, folder, tokenizer_file, tmp_path):
    path = folder / "train" / "ant" / "01.png"
    Image.new("1", (2000, 1000), 1).save(path)
    run = command(folder, "out", tokenizer_file, "--max-megapixels")
    assert refused(star(*run, 1.5), "2000 x 1000 pixels; at most 1.5 megapixels", "--max-megapixels")
    assert refused(star(*run, 0), "max_megapixels is 0; expected more than 0")
    code, out, err = star(*run, 2)
    assert code == 0 and "train: 12 images" in out, err
    with pytest.raises(UserError, match="at most 1 megapixels"):
        load_image(path, max_megapixels=1)
    assert load_image(path, max_megapixels=2).size == (2000, 1000)


def test_workers_out_of_range(star, folder, tokenizer_file):
    run = command(folder, "out", tokenizer_file, "--workers")
    assert refused(star(*run, -1), "workers is -1; expected 0 (threads) to 1000 processes")


def test_classes_that_look_like_imagenet_are_warned_about(star, folder, tokenizer_file):
    for split in ("train", "val", "test"):
        for old, new in (("ant", "n01440764"), ("bee", "n15075141")):
            (folder / split / old).rename(folder / split / new)
    code, out, err = star(*command(folder, "out", tokenizer_file))
    assert code == 0, err
    assert out.count("label i is not ImageNet's class i") == 1 and "2 synsets" in out
