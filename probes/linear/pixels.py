"""Small pictures of every image for the pixel control: the source's own, else the tokens decoded.

The area that a probe's model was shown is that of the store's test view; it is reduced to c x c pixels
a cell (area averages), so that a picture has about 32 x 32 pixels whatever the grid. A decoder draws
each cell from tokens all around, so tokens are decoded anew for every step, from those seen alone (the
codes of the others 0): pictures of all tokens would show what the step has not seen.

Shapes: N images, P pictures of each (1 of the source, K decoded), K steps, g grid, c pixels a cell.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from probes.linear.splits import PARTS, ProbeSplits
from probes.reading.features import check_decoder
from star.base.device import exact_float32, require_memory
from star.base.errors import UserError
from star.codes.store import CodeStore
from star.images.open import ImageSource, Split
from star.images.views import ViewSet, view_set
from star.tokenizer.model import VQModel, to_uint8

__all__ = ["check_pictures", "small_pictures"]

SIDE = 32  # pixels that the cells of a row have together, about


def check_pictures(splits: ProbeSplits, source: ImageSource | None, tokenizer: VQModel | None) -> None:
    """Raise ``UserError`` if neither gives pictures of the images that the codes were made from."""
    if source is None and tokenizer is None:
        raise UserError(
            f"{splits.stores['train'].path} holds codes alone; the pixel control needs the images they "
            "were made from (--images FOLDER) or the tokenizer (--tokenizer FILE)"
        )
    if source is None:
        assert tokenizer is not None
        check_decoder(tokenizer, splits.stores["train"])
        return
    for part in PARTS:
        _same_images(splits.stores[part], source)


def small_pictures(
    splits: ProbeSplits,
    steps: Sequence[int],
    source: ImageSource | None,
    tokenizer: VQModel | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, np.ndarray], str]:
    """(N, P, g c, g c, 3) uint8 of each part, and what they are: ``source`` or ``seen tokens decoded``.

    Raises ``UserError`` if there is neither a source nor a tokenizer, or if the source's images (the
    tokenizer) are not those (is not the one) that the codes were made from.
    """
    check_pictures(splits, source, tokenizer)
    grid = splits.stores["train"].grid
    side = grid * max(1, SIDE // grid)
    total = sum(splits.count(part) for part in PARTS)
    each = 1 if source is not None else len(steps)
    what = f"{each} small pictures of each of {total:,} images"
    require_memory(what, total * each * side * side * 3, "cpu")
    done = 0
    pictures = {}
    for part in PARTS:
        found = np.empty((splits.count(part), each, side, side, 3), dtype=np.uint8)
        store, rows = splits.stores[part], splits.rows[part]
        if source is not None:
            pieces = _from_source(store, rows, _same_images(store, source))
        else:
            assert tokenizer is not None
            pieces = _from_tokens(store, rows, tokenizer, steps)
        start = 0
        for images_NPHWC in pieces:
            for of_image in images_NPHWC:
                found[start] = [_reduce(image, side) for image in of_image]
                start += 1
            done += len(images_NPHWC)
            on_progress(done, total)
        pictures[part] = found
    return pictures, "source" if source is not None else "seen tokens decoded"


def _reduce(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def _same_images(store: CodeStore, source: ImageSource) -> Split:
    """The source's split whose fingerprint is the one that ``store`` was made from."""
    made_from = store.manifest.get("source")
    wanted = made_from.get("fingerprint") if isinstance(made_from, dict) else None
    for split in source.splits.values():
        if split.fingerprint() == wanted:
            return split
    raise UserError(f"the images of {source.name} are not those that {store.path} was made from")


def _from_source(store: CodeStore, rows: np.ndarray, split: Split) -> Iterator[np.ndarray]:
    facts = store.manifest["view_set"]
    cut: ViewSet = view_set(facts["name"], facts["size"], seed=facts.get("seed", 0)).test_only()
    left_out = set(store.skipped)
    kept = [index for index in range(len(split)) if split.name(index) not in left_out]
    for row in rows:
        yield cut(split.load(kept[row]), kept[row])[None]


@torch.no_grad()
def _from_tokens(
    store: CodeStore, rows: np.ndarray, tokenizer: VQModel, steps: Sequence[int], batch_size: int = 64
) -> Iterator[np.ndarray]:
    device = tokenizer.quant_conv.weight.device
    place_gg = torch.arange(store.tokens, device=device).view(store.grid, store.grid)
    for start in range(0, len(rows), batch_size):
        codes = np.asarray(store.codes[rows[start : start + batch_size], store.test_view], np.int64)
        indices_Bgg = torch.from_numpy(codes).view(-1, store.grid, store.grid).to(device)
        codes_BEgg = tokenizer.lookup(indices_Bgg)
        with exact_float32():
            drawn = [tokenizer.decode_codes(codes_BEgg * (place_gg < step - 1)) for step in steps]
        yield np.stack([to_uint8(images_BCHW).cpu().numpy() for images_BCHW in drawn], axis=1)
