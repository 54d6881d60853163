"""The codes of the digits are the same bytes on every machine, but for the tokens that are named."""

import json

import numpy as np
import pytest
from digits_codes import CLOSE, GOLDEN, digits_codes, masked_sha256

from star.tokenizer.file import load_tokenizer, tokenizer_sha256


@pytest.mark.slow  # every view of every digit through the tokenizer
def test_the_digits_codes_are_those_of_every_machine(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert tokenizer_sha256(load_tokenizer("digits")) == golden["tokenizer_sha256"]
    found = digits_codes(tmp_path / "codes")
    assert list(found) == list(golden["splits"])
    for split, (codes, margins) in found.items():
        known = golden["splits"][split]
        assert list(codes.shape) == known["shape"]
        assert masked_sha256(codes, known["close"]) == known["sha256"], split
        # No token outside the list is so close that another order of sums could change it: its margin
        # is half of what the list was made with, three times a cosine's largest change, or more.
        rest = np.ones(codes.shape, dtype=bool)
        if known["close"]:
            rest[tuple(np.array(known["close"]).T)] = False
        assert margins[rest].min() > CLOSE / 2, f"{split}: smallest margin {margins[rest].min():.2g}"
        assert len(known["close"]) < 1e-3 * codes.size


def test_the_named_tokens_are_few_and_the_hash_sees_the_others():
    golden = json.loads(GOLDEN.read_text())["splits"]
    assert all(split["smallest_margin"] > 0 for split in golden.values())
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    other = codes.copy()
    other[1, 2, 0] = 99
    assert masked_sha256(codes, []) != masked_sha256(other, [])
    assert masked_sha256(codes, [[1, 2, 0]]) == masked_sha256(other, [[1, 2, 0]])
