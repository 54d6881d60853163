"""The digits' codes as every machine makes them, and which of them rounding could change.

A token is the code of largest cosine; its margin is that cosine less the second largest. Float32 sums
in another order move a cosine by a few millionths, so a token with a margin below ``CLOSE`` may be the
second code on another machine. These few are named in ``tests/golden/digits_codes.json``; the sha256
there is of all codes with the named ones set to 0. Running this file (``PYTHONPATH=. python``) writes
it, only when the digits' tokenizer, split or views are meant to change.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from star.codes.encode import tokenize
from star.images.open import open_source
from star.tokenizer.file import load_tokenizer, tokenizer_sha256

GOLDEN = Path(__file__).parents[1] / "golden" / "digits_codes.json"
CLOSE = 2e-5  # six times the largest change of a cosine that was seen between float32 and float64


def digits_codes(out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and margins (N, views, T) of each split of the digits, tokenised into ``out``."""
    tokenizer = load_tokenizer("digits")
    codes_EV = F.normalize(tokenizer.quantize.embedding.weight, dim=-1).t()
    nearest = tokenizer.quantize.nearest
    seen = []

    def watched(z_NE: torch.Tensor) -> torch.Tensor:
        top_N2 = (F.normalize(z_NE, dim=-1) @ codes_EV).topk(2, dim=-1).values
        seen.append((top_N2[:, 0] - top_N2[:, 1]).numpy())
        return nearest(z_NE)

    tokenizer.quantize.nearest = watched
    stores = tokenize(open_source("digits"), tokenizer, out)
    margins, found = np.concatenate(seen), {}
    for split, store in stores.items():  # in the order they were made in
        codes = np.asarray(store.codes)
        found[split] = codes, margins[: codes.size].reshape(codes.shape)
        margins = margins[codes.size :]
    assert margins.size == 0, "the tokenizer encoded something else"
    return found


def masked_sha256(codes: np.ndarray, named: list[list[int]]) -> str:
    """sha256 of the codes as little-endian uint16, those at ``named`` (image, view, token) set to 0."""
    codes = codes.astype("<u2")
    if named:
        codes[tuple(np.array(named).T)] = 0
    return hashlib.sha256(codes.tobytes()).hexdigest()


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = digits_codes(Path(folder) / "codes")
    golden = {"tokenizer_sha256": tokenizer_sha256(load_tokenizer("digits")), "splits": {}}
    for split, (codes, margins) in found.items():
        named = np.argwhere(margins < CLOSE).tolist()
        golden["splits"][split] = {
            "shape": list(codes.shape),
            "sha256": masked_sha256(codes, named),
            "smallest_margin": float(margins.min()),
            "close": named,
        }
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
