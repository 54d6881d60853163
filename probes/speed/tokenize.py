"""How fast images become codes: star tokenize against one image at a time, LlamaGen's way.

Its ``extract_codes_c2i.py`` reads batches of one image from a DataLoader, turns the ten crops into ten
tensors, encodes these ten views in one call and saves an image's codes and its label as two ``.npy``
files. Both arms read the same JPEG files, have the same weights in float32 and as many workers; ours
keeps them in channels_last, as ``load_tokenizer`` does. That both give the same codes is counted, not
assumed: sums in another order may turn a near tie around.
"""

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from probes.speed.timing import Timings, alternate
from star.base.errors import UserError
from star.base.randomness import generator, torch_generator
from star.codes.encode import tokenize
from star.codes.store import open_codes
from star.images.open import load_image, open_source
from star.images.source import Split
from star.images.views import center_crop, random_crop
from star.tokenizer.file import load_tokenizer
from star.tokenizer.model import VQModel
from star.tokenizer.shape import PRESETS

__all__ = ["ARMS", "TokenizeBench", "bench_tokenize"]

ARMS = ("one image at a time", "star tokenize")
CROP_RANGE = 1.1


@dataclass(frozen=True)
class TokenizeBench:
    """Timings by arm, of ``images`` images; ``equal``: the share of tokens that both arms agree on."""

    timings: Timings
    images: int
    size: int
    equal: float


def bench_tokenize(
    tokenizer: Path | str,
    device: torch.device,
    *,
    size: int,
    images: int,
    workers: int,
    rounds: int,
    folder: Path,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> TokenizeBench:
    """Time ten-crop extraction of ``images`` images at ``size`` pixels, files below ``folder``.

    ``tokenizer`` is a file, a name, or that of a preset, whose weights are then random. ``workers`` are
    the processes of the DataLoader; ours takes its own default, threads beside a CPU.
    """
    if images < 2:
        raise UserError(f"images is {images}; expected at least 2")
    if workers < 0:
        raise UserError(f"workers is {workers}; expected 0 or more")
    ours = open_for_bench(tokenizer).to(device).to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    stride = ours.config.stride
    if size < stride or size % stride:
        raise UserError(f"size is {size}; expected a multiple of the tokenizer's stride {stride}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-tokenize-") as scratch:
        root = Path(scratch)
        write_images(root / "set", images, size)
        source = open_source(root / "set")
        split = source.splits["train"]

        def one_by_one(_: int) -> None:
            shutil.rmtree(root / "theirs", ignore_errors=True)
            extract_one_by_one(split, theirs, root / "theirs", size, workers, device)

        def at_once(_: int) -> None:
            shutil.rmtree(root / "ours", ignore_errors=True)
            alone = replace(source, splits={"train": split})
            tokenize(alone, ours, root / "ours", size=size, views="ten-crop", device=str(device))

        timings = alternate(
            {ARMS[0]: one_by_one, ARMS[1]: at_once},
            rounds=rounds,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
            on_round=on_round,
        )
        found = open_codes(root / "ours" / "train").codes
        files = [np.load(root / "theirs" / f"codes-{image}.npy")[0] for image in range(len(split))]
        equal = float((found == np.stack(files)).mean())
    return TokenizeBench(timings, len(split), size, equal)


def open_for_bench(tokenizer: Path | str) -> VQModel:
    """The tokenizer of a file or by name, or one of a preset's shape with random weights."""
    if str(tokenizer) not in PRESETS or Path(tokenizer).exists():
        return load_tokenizer(tokenizer)
    model = VQModel(PRESETS[str(tokenizer)])
    rng = torch_generator(0, "bench tokenizer")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=rng)
    return model.eval().requires_grad_(False)


def write_images(root: Path, images: int, size: int) -> None:
    """An image folder of random crops of the two photographs, each a JPEG of 1.5 x ``size`` pixels."""
    photos = [load_image(name) for name in ("china.jpg", "flower.jpg")]
    for index in range(images + 2):  # two of them become val
        label = index % 2
        path = root / "train" / f"class{label}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = random_crop(photos[label], size * 3 // 2, generator(0, "bench images", index))
        crop.save(path, quality=90)


class _TenTensors(Dataset):
    """Image to its ten crops as one float tensor (10, 3, size, size), as torchvision makes them."""

    def __init__(self, split: Split, size: int) -> None:
        from torchvision import transforms

        self.split, self.size = split, size
        self.transform = transforms.Compose(
            [
                transforms.TenCrop(size),
                transforms.Lambda(
                    lambda crops: torch.stack([transforms.ToTensor()(crop) for crop in crops])
                ),
                transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3, inplace=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        square = center_crop(self.split.load(index), int(self.size * CROP_RANGE))
        return self.transform(square), int(self.split.labels[index])


def extract_one_by_one(
    split: Split, tokenizer: VQModel, out: Path, size: int, workers: int, device: torch.device
) -> None:
    """Codes (1, 10, T) and label (1,) of every image as int64 files of their own."""
    out.mkdir(parents=True)
    loader = DataLoader(
        _TenTensors(split, size),
        batch_size=1,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for index, (views, label) in enumerate(loader):
        with torch.no_grad():
            indices = tokenizer.encode(views.to(device).flatten(0, 1))
        np.save(out / f"codes-{index}.npy", indices.reshape(1, 10, -1).cpu().numpy())
        np.save(out / f"label-{index}.npy", label.numpy())
