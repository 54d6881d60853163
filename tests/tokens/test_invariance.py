"""Token invariance on a tokenizer whose tokens see only their cell: exact motions, and every number
against loops over cells and pixels."""

import math

import numpy as np
import pytest
from cell_tokenizer import CellTokenizer, pictures, random_pictures

from probes.stats.intervals import mean_interval, neighbours_interval
from probes.tokens.augmentations import AUGMENTATIONS, chosen_views
from probes.tokens.compare import compare_invariance, invariance_sentences
from probes.tokens.invariance import MEASURES, PSNR_CAP, measure_invariance, psnr
from star.base.errors import UserError
from star.base.randomness import generator

STRIDE, SIZE = 4, 16


def measured(arrays, asked=None, tokenizer=None, **options):
    tokenizer = tokenizer or CellTokenizer()
    size = arrays.shape[1]
    views = chosen_views(asked, size=size, stride=tokenizer.config.stride)
    return measure_invariance(tokenizer, pictures(arrays), views, size=size, **options)


def row(found, name, strength):
    table = found.table().set_index(["augmentation", "strength"])
    return table.loc[(name, float(strength))]


def test_what_moves_whole_cells_keeps_every_index_where_it_went():
    found = measured(random_pictures(6), "shift:-8,-4,0,4,8,cells:-2,0,1,3,flip,turn")
    table = found.table()
    np.testing.assert_array_equal(table["aligned"], 1.0)
    np.testing.assert_array_equal(table["input_psnr"], PSNR_CAP)
    np.testing.assert_array_equal(table["decoded_psnr"], PSNR_CAP)
    moved = table[~table["identity"]]
    assert (moved["equal"] < 0.6).all() and moved["code_distance"].isna().all()
    for name in ("flip", "turn"):  # the same cells in other places
        assert (table[table["augmentation"] == name]["histogram"] == 0).all()
    assert np.isnan(row(measured(random_pictures(2), "shift:1"), "shift", 1)["aligned"])


def test_same_cell_agreement_of_stripes_by_hand():
    red, blue = (np.full((SIZE, STRIDE, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    stripes = np.concatenate([red, blue, red, blue], axis=1)
    found = measured(np.stack([stripes] * 2), "cells:1,2,flip")
    # Moved right by one cell, the first column repeated: red red blue red against red blue red blue.
    assert row(found, "cells", 1)["equal"] == 0.25
    # By two: red red red blue, which agrees in columns 1, 3 and 4.
    assert row(found, "cells", 2)["equal"] == 0.75
    assert row(found, "flip", 1)["equal"] == 0
    assert row(found, "cells", 1)["aligned"] == row(found, "flip", 1)["aligned"] == 1
    # Red red blue red holds one red more than the image of two and two.
    assert row(found, "cells", 1)["histogram"] == 0.25


def test_only_the_overlap_is_compared():
    arrays = random_pictures(3)
    other = arrays.copy()
    other[:, :, -STRIDE:] = 255 - other[:, :, -STRIDE:]  # leaves the view when it moves right by a cell
    views = chosen_views("cells:1,-1", size=SIZE, stride=STRIDE)
    for view, still in zip(views, (True, False), strict=True):
        moved = np.stack([view(image, None) for image in arrays])
        before, after = view.undo(other, moved, STRIDE)
        assert before.shape == after.shape == (3, SIZE, SIZE - STRIDE, 3)
        assert (before == after).all() == still


def test_the_identity_changes_nothing_and_noise_0_is_one():
    found = measured(random_pictures(5))
    table = found.table()
    still = table[table["identity"]]
    assert set(still["augmentation"]) == set(AUGMENTATIONS) - {"jpeg"}
    assert (still["equal"] == 1).all() and (still["histogram"] == 0).all()
    assert (still[["decoded_psnr", "input_psnr"]] == PSNR_CAP).all(axis=None)
    assert (still["psnr_gain"] == 0).all() and still["code_distance"].isna().all()
    assert still["aligned"].dropna().eq(1).all() and (still["changed_images"] == 0).all()
    noise = [view for view in found.views if view.augmentation.name == "noise"]
    image = random_pictures(1)[0]
    np.testing.assert_array_equal(noise[0](image, generator(0, "x")), image)
    np.testing.assert_array_equal(
        noise[0].augmentation.apply(image, 0.0, generator(0, "x")), image, "also without the short cut"
    )


def indices_of(tokenizer, image):
    """(g, g) nearest codes by cosine of each cell's mean, cell by cell."""
    codes = tokenizer.quantize.embedding.weight.double().numpy()
    grid = len(image) // STRIDE
    found = np.empty((grid, grid), dtype=int)
    for r, c in np.ndindex(grid, grid):
        cell = image[r * STRIDE : (r + 1) * STRIDE, c * STRIDE : (c + 1) * STRIDE] / 255.0 + 0.02
        mean = cell.reshape(-1, 3).mean(0)
        found[r, c] = max(
            range(len(codes)), key=lambda code: codes[code] @ mean / np.linalg.norm(codes[code])
        )
    return found


def drawn_from(tokenizer, indices):
    codes = tokenizer.quantize.embedding.weight.double().numpy()
    picture = np.empty((len(indices) * STRIDE,) * 2 + (3,), dtype=np.uint8)
    for r, c in np.ndindex(*indices.shape):
        colour = codes[indices[r, c]] / np.linalg.norm(codes[indices[r, c]])
        pixel = np.clip(127.5 * (2 * colour - 1) + 128, 0, 255).astype(np.uint8)
        picture[r * STRIDE : (r + 1) * STRIDE, c * STRIDE : (c + 1) * STRIDE] = pixel
    return picture


def decibel(one, two):
    error = sum((int(a) - int(b)) ** 2 for a, b in zip(one.flat, two.flat, strict=True)) / one.size
    return PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * math.log10(255**2 / error))


def undone(name, array, image, cells):
    """(image, view) brought together, by hand: ``cells`` is what one cell is in this array."""
    if name == "flip":
        return image, array[:, ::-1]
    if name == "turn":  # by 90 degrees against the clock: turned back by three more
        return image, np.rot90(array, 3)
    if name == "cells":
        return image[:, :-cells], array[:, cells:]
    return image, array


def by_loops(tokenizer, image, view_image, other, name):
    codes = tokenizer.quantize.embedding.weight.double().numpy()
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    before, after, unrelated = (indices_of(tokenizer, each) for each in (image, view_image, other))
    was, now = undone(name, after, before, 1)
    pairs = list(zip(was.flat, now.flat, strict=True))
    changed = [1 - codes[a] @ codes[b] for a, b in pairs if a != b]
    crossed = [1 - codes[a] @ codes[b] for a in after.flat for b in unrelated.flat if a != b]

    def variation(one, two):
        counts = [abs((one == code).sum() - (two == code).sum()) for code in range(len(codes))]
        return sum(counts) / (2 * one.size)

    drawings = undone(name, drawn_from(tokenizer, after), drawn_from(tokenizer, before), STRIDE)
    given = decibel(*undone(name, view_image, image, STRIDE))
    return {
        "equal": sum(a == b for a, b in zip(before.flat, after.flat, strict=True)) / before.size,
        "aligned": sum(a == b for a, b in pairs) / len(pairs)
        if name in ("cells", "flip", "turn")
        else math.nan,
        "chance": (unrelated == after).mean(),
        "code_distance": sum(changed) / len(changed) if changed else math.nan,
        "code_distance_chance": sum(crossed) / len(crossed),
        "histogram": variation(before, after),
        "histogram_chance": variation(unrelated, after),
        "decoded_psnr": decibel(*drawings),
        "input_psnr": given,
        "psnr_gain": decibel(*drawings) - given,
        "reconstruction_psnr": decibel(image, drawn_from(tokenizer, before)),
    }


def test_every_number_is_that_of_loops_over_cells_and_pixels():
    arrays, tokenizer = random_pictures(5), CellTokenizer()
    found = measured(arrays, "shift:1,cells:1,flip:1,turn:90,noise:40,jpeg:30", batch_size=2)
    for place, view in enumerate(found.views):
        for at in range(5):
            changed = view(arrays[at], generator(0, f"noise of {at}"))
            wanted = by_loops(
                tokenizer, arrays[at], changed, arrays[(at + 1) % 5], view.augmentation.name
            )
            assert set(wanted) == set(MEASURES)
            for measure in MEASURES:
                # float32 sums of squared differences of 768 values, in dB
                assert found.values[measure][place, at] == pytest.approx(
                    wanted[measure], abs=1e-4, nan_ok=True
                ), (measure, view)
    values = found.values["equal"][0]
    line = found.table().iloc[0]
    assert (line["equal"], line["equal_low"], line["equal_high"]) == pytest.approx(
        mean_interval(values)
    )
    for measure in ("chance", "code_distance_chance", "histogram_chance"):  # image i beside i + 1
        numbers = tuple(line[[measure, f"{measure}_low", f"{measure}_high"]])
        assert numbers == pytest.approx(neighbours_interval(found.values[measure][0]))


def test_maps_count_changes_at_the_cells_places_in_the_image():
    arrays = random_pictures(4)
    found = measured(arrays, "shift:0,1,2,cells:1,2")
    tokenizer, views = CellTokenizer(), found.views[1:3]
    share = np.zeros((4, 4))
    for image in arrays:
        for view in views:
            share += indices_of(tokenizer, image) != indices_of(tokenizer, view(image, None))
    np.testing.assert_allclose(found.maps["shift"], share / 8)
    # Moved right by 1 and 2 cells the last column always leaves; the others are found again.
    np.testing.assert_array_equal(found.maps["cells"][:, :3], 0)
    assert np.isnan(found.maps["cells"][:, 3]).all()
    assert np.isnan(measured(arrays, "noise:0").maps["noise"]).all()


def test_more_noise_fewer_equal_and_the_batch_does_not_matter():
    arrays = random_pictures(40)
    found = measured(arrays, "noise:0,5,20,60,120")
    assert (np.diff(found.table()["equal"]) < 0).all() and (
        np.diff(found.table()["histogram"]) > 0
    ).all()
    again = measured(arrays, "noise:0,5,20,60,120", batch_size=7)
    for measure in MEASURES:
        np.testing.assert_array_equal(found.values[measure], again.values[measure])
    other = measured(arrays, "noise:0,5,20,60,120", seed=1)
    assert (other.values["equal"][2:] != found.values["equal"][2:]).any()


def test_one_image_has_no_chance_and_no_interval():
    line = row(measured(random_pictures(1), "noise:30"), "noise", 30)
    assert math.isfinite(line["equal"]) and math.isnan(line["equal_low"])
    assert math.isnan(line["chance"]) and math.isnan(line["code_distance_chance"])


def test_psnr_is_cut_at_60():
    zero = np.zeros((2, 8, 8, 3), np.uint8)
    one = zero.copy()
    one[1, 0, 0, 0] = 1  # mean squared error 1/192: 70.96 dB
    np.testing.assert_allclose(psnr(zero, one), 60)
    np.testing.assert_allclose(psnr(zero, zero + 1), 10 * math.log10(255**2))
    np.testing.assert_allclose(psnr(zero + 255, zero), 0)


def test_two_tokenizers_of_other_strides_on_the_same_images():
    arrays = random_pictures(24)
    fine, coarse = CellTokenizer(name="fine"), CellTokenizer(levels=4, codes=6, name="coarse")
    asked = {"size": SIZE, "coarsest": 8}
    first, second = (
        measure_invariance(
            each,
            pictures(arrays),
            chosen_views("shift,cells:1,noise:0,40", stride=each.config.stride, **asked),
            size=SIZE,
        )
        for each in (fine, coarse)
    )
    shifts = [v.strength for v in first.views if v.augmentation.name == "shift"]
    assert shifts == [0, 1, 2, 4, 8]
    # 4 pixels are a whole cell of the one and half a cell of the other.
    assert [row(each, "shift", 4)["aligned"] for each in (first, second)] == pytest.approx(
        [1, math.nan], nan_ok=True
    )
    assert row(first, "shift", 8)["aligned"] == row(second, "shift", 8)["aligned"] == 1
    table = compare_invariance(first, second)
    noise = table[(table["augmentation"] == "noise") & (table["measure"] == "equal")].iloc[0]
    differences = second.values["equal"][-1] - first.values["equal"][-1]
    assert (noise["difference"], noise["low"], noise["high"]) == pytest.approx(
        mean_interval(differences)
    )
    assert noise["n"] == 24 and noise["higher"] == "coarse" and not (table["strength"] == 0).any()
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()
    sentence = invariance_sentences(table, ("fine", "coarse"))[0]
    assert sentence.startswith("equal: coarse higher at ") and "of 6 strengths" in sentence
    with pytest.raises(UserError, match="fine was measured on 24 images and few on 3"):
        compare_invariance(first, measured(arrays[:3], "noise:40", name="few"))
    few = compare_invariance(*(measured(arrays[:3], "noise:40", name=name) for name in "ab"))
    assert few["higher"].isna().all() and few["p"].isna().all()


def test_a_size_that_does_not_fit_is_refused_before_reading():
    def never(name):
        raise AssertionError("read")

    split = pictures(random_pictures(1))
    object.__setattr__(split, "read", never)
    for size in (18, 2, 0):
        with pytest.raises(UserError, match=f"size is {size}; expected a multiple of .* stride 4"):
            measure_invariance(CellTokenizer(), split, [], size=size)
    with pytest.raises(UserError, match="batch_size is 0"):
        measure_invariance(CellTokenizer(), split, [], size=16, batch_size=0)
