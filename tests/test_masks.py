"""Hole masks: what they look like, that they keep their bounds, and that stored sets stay what they are."""

import functools
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_jax.mask_sets import evaluation_masks, load_masks, save_masks
from inpaint_jax.masks import MASK_DEFAULTS, MASKS, band, dilate, draw_mask, rasterise, validate_mask_spec

FAMILIES = sorted(MASKS)
# Few cases, drawn in batches: each is a program to compile.
CASES = [("lines", 16, 16), ("lines", 24, 40), ("squares", 16, 24), ("freeform", 24, 40), ("mixture", 32, 32)]


@functools.cache
def batch_drawer(name: str, height: int, width: int):
    return jax.jit(jax.vmap(lambda key: draw_mask(key, height, width, {"name": name})))


@functools.cache
def rasteriser(height: int, width: int):
    return jax.jit(lambda shapes: rasterise(shapes, height, width))


@settings(max_examples=40, deadline=None)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 2**32 - 1))
def test_masks_are_binary_within_their_ratio_and_repeatable(case, seed):
    keys = jax.random.split(jax.random.key(seed), 8)
    masks = np.asarray(batch_drawer(*case)(keys))
    name, height, width = case
    assert masks.shape == (8, height, width, 1)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) == {0.0, 1.0}
    low, high = MASK_DEFAULTS[name]["ratio"]
    ratios = masks.mean(axis=(1, 2, 3), dtype=np.float64)
    assert ratios.min() >= low
    assert ratios.max() <= high
    np.testing.assert_array_equal(masks, batch_drawer(*case)(keys))
    assert len(np.unique(masks.reshape(8, -1), axis=0)) > 1


def test_one_mask_alone_equals_the_same_mask_in_a_batch():
    keys = jax.random.split(jax.random.key(11), 8)
    single = jax.jit(lambda key: draw_mask(key, 32, 32, {"name": "mixture"}))
    batch = batch_drawer("mixture", 32, 32)(keys)
    for key, mask in zip(keys, batch, strict=True):
        np.testing.assert_array_equal(single(key), mask)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "lines", "number": (1, 1), "thickness": (0.02, 0.04), "ratio": (0.2, 0.3)},
        {"name": "freeform", "number": (4, 4), "segments": (8, 8), "ratio": (0.03, 0.1), "length": (0.05, 0.1)},
        {"name": "squares", "number": (8, 8), "size": (0.1, 0.2), "ratio": (0.05, 0.1)},
    ],
    ids=["goes_on_below_the_least", "stops_at_the_largest", "leaves_out_what_is_too_large"],
)
def test_the_ratio_goes_before_the_drawn_number(spec):
    masks = evaluation_masks(spec, 128, 48, 48).unpack()
    ratios = masks.mean(axis=(1, 2, 3))
    assert ratios.min() >= spec["ratio"][0]
    assert ratios.max() <= spec["ratio"][1]


def distance_reference(shape: np.ndarray, height: int, width: int) -> np.ndarray:
    """Distance of every pixel centre from a segment, in float64."""
    start, end = shape[1:3].astype(float), shape[3:5].astype(float)
    y, x = np.mgrid[:height, :width]
    points = np.stack([x, y], axis=-1) - start
    direction = end - start
    along = np.clip(points @ direction / max(direction @ direction, 1e-9), 0, 1)
    return np.linalg.norm(points - along[..., None] * direction, axis=-1)


@settings(max_examples=60, deadline=None)
@given(
    ends=st.tuples(*[st.integers(-60, 120)] * 4),
    thickness=st.integers(1, 24),
    corners=st.tuples(*[st.integers(0, 59)] * 4),
)
def test_rasteriser_fills_what_lies_within_half_the_thickness(ends, thickness, corners):
    height, width = 48, 60
    (left, right), (top, bottom) = sorted(corners[::2]), sorted(corners[1::2])
    segment, rectangle = (1, *ends, thickness), (2, left, top, right, bottom, 0)
    fill = rasteriser(height, width)
    shapes = np.asarray([segment, (0,) * 6, rectangle], np.int32)
    union, drawn = np.asarray(fill(shapes)), np.asarray(fill(shapes * [[1], [1], [0]]))
    distance = distance_reference(shapes[0], height, width)
    # The length is rounded up to 1/16 pixel, so the edge may lie outside by that share of half the thickness.
    slack = thickness / 2 / (16 * max(1.0, np.hypot(ends[2] - ends[0], ends[3] - ends[1]))) + 1e-6
    assert drawn[distance <= thickness / 2 - 1e-6].all()
    assert not drawn[distance > thickness / 2 + slack].any()
    boxed = np.zeros((height, width), bool)
    boxed[top : bottom + 1, left : right + 1] = True
    np.testing.assert_array_equal(union, drawn | boxed)


@pytest.mark.parametrize("thickness", [2, 3, 9])
def test_lines_look_like_opencv_lines(thickness):
    # OpenCV fills the outline as well, which makes its slanting lines up to two pixels wider than asked for.
    stream = np.random.RandomState(thickness)
    for x0, y0, x1, y1 in stream.randint(0, 128, (20, 4)).tolist():
        theirs = cv2.line(np.zeros((128, 128), np.uint8), (x0, y0), (x1, y1), 1, thickness).astype(bool)
        ours, wider = (
            np.asarray(rasteriser(128, 128)(np.asarray([(1, x0, y0, x1, y1, t)], np.int32)))
            for t in (thickness, thickness + 3)
        )
        assert theirs[ours].all()
        assert wider[theirs].all()


def test_rasteriser_is_exact_at_the_largest_size():
    shapes = np.asarray([(1, 0, 1023, 1023, 0, 100)], np.int32)
    drawn = np.asarray(rasteriser(1024, 1024)(shapes))
    assert (drawn != (distance_reference(shapes[0], 1024, 1024) <= 50)).mean() < 1e-5


def test_squares_keep_size_margin_and_fixed_positions():
    spec = {"name": "squares", "size": (0.16, 0.16), "margin": 0.08}
    places = set()
    for mask in evaluation_masks(spec, 64, 100, 100).unpack()[..., 0]:
        y, x = np.nonzero(mask)
        assert (np.ptp(x), np.ptp(y), mask.sum()) == (15, 15, 256)
        assert min(x.min(), y.min()) >= 8
        assert max(x.max(), y.max()) <= 91
        places.add((x.min(), y.min()))
    assert len(places) > 50
    fixed = evaluation_masks(spec | {"positions": ((0.1, 0.5), (0.7, 0.2))}, 64, 100, 100).unpack()[..., 0]
    assert {(np.nonzero(mask)[1].min(), np.nonzero(mask)[0].min()) for mask in fixed} == {(10, 50), (70, 20)}


def test_freeform_strokes_are_connected():
    for mask in evaluation_masks({"name": "freeform", "number": (1, 1), "ratio": (0.0, 0.9)}, 32, 64, 64).unpack():
        assert cv2.connectedComponents(mask[..., 0])[0] == 2


def test_mixture_uses_families_by_weight():
    spec = {"name": "mixture", "weights": {"lines": 3, "squares": 1}, "squares": {"size": (0.25, 0.25)}}
    masks = evaluation_masks(spec, 400, 32, 32)
    square = (masks.shapes[:, 0, 0] == 2).mean()
    assert square == pytest.approx(0.25, abs=0.08)
    holes = masks.unpack()[masks.shapes[:, 0, 0] == 2]
    np.testing.assert_array_equal(holes.sum(axis=(1, 2, 3)), 64)
    everything = evaluation_masks({"name": "mixture"}, 64, 32, 32)
    # Strokes are chains: their second segment begins where the first ends.
    second = everything.shapes[:, 1]
    chained = (everything.shapes[:, 0, 3:5] == second[:, 1:3]).all(axis=1) & (second[:, 0] == 1)
    squares = everything.shapes[:, 0, 0] == 2
    assert min(chained.sum(), squares.sum(), (~chained & ~squares).sum()) >= 5


# These ids may never change: results are compared by them. NumPy has frozen the stream, the rest is integers.
GOLDEN = {
    "lines": "lines-70-32x32-acd9abbd3a11c56f",
    "squares": "squares-70-32x32-9978d0e70e814002",
    "freeform": "freeform-70-32x32-a35ad907d5bdb01c",
    "mixture": "mixture-70-32x32-56b0515ca2e4c051",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_sets_never_change(name):
    with jax.default_prng_impl("rbg"):
        masks = evaluation_masks({"name": name}, 70, 32, 32, seed=5)
    assert masks.id == GOLDEN[name]
    holes = masks.unpack()
    assert (holes.shape, holes.dtype, holes.max()) == ((70, 32, 32, 1), np.uint8, 1)
    redrawn = jax.vmap(lambda shapes: rasterise(shapes, 32, 32))(masks.shapes)
    np.testing.assert_array_equal(redrawn, holes[..., 0] == 1)


def test_a_longer_set_begins_with_the_shorter_one_and_seeds_differ():
    short, long = (evaluation_masks({"name": "lines"}, count, 32, 32, seed=5) for count in (3, 9))
    np.testing.assert_array_equal(long.packed[:3], short.packed)
    assert evaluation_masks({"name": "lines"}, 3, 32, 32, seed=6).id != short.id


def test_stored_masks_come_back_and_damage_is_noticed(tmp_path):
    path = tmp_path / "new folder" / "masks.npz"
    masks = evaluation_masks({"name": "squares"}, 3, 17, 23)
    save_masks(path, masks)
    assert [file.name for file in path.parent.iterdir()] == ["masks.npz"]
    loaded = load_masks(path)
    assert loaded.id == masks.id
    np.testing.assert_array_equal(loaded.unpack(), masks.unpack())
    np.testing.assert_array_equal(loaded.shapes, masks.shapes)
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content.replace(masks.packed.tobytes(), (~masks.packed).tobytes()),
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"masks\.npz.*delete it and draw it again"):
            load_masks(path)
    np.savez(path, id=masks.id, shapes=masks.shapes, packed=masks.packed ^ 1, size=[17, 23])
    with pytest.raises(ValueError, match=r"masks\.npz is damaged: its masks do not match its id"):
        load_masks(path)


def test_dilate_and_band_match_opencv():
    masks = (np.random.RandomState(0).uniform(size=(2, 20, 30, 1)) < 0.02).astype(np.float32)
    expected = np.stack([cv2.dilate(mask, np.ones((7, 7)))[..., None] for mask in masks])
    np.testing.assert_array_equal(dilate(jnp.asarray(masks), 3), expected)
    np.testing.assert_array_equal(dilate(jnp.asarray(masks[0]), 3), expected[0])
    np.testing.assert_array_equal(band(jnp.asarray(masks), 3), expected - masks)
    np.testing.assert_array_equal(band(jnp.asarray(masks), 0), 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "circles"}, "'circles'; known: freeform, lines, mixture, squares"),
        ({"name": "lines", "size": (0.1, 0.2)}, "no field 'size'; known: number, length, thickness, ratio"),
        ({"name": "lines", "number": (0, 3)}, "lines.number = (0, 3): needs two whole numbers 1 <= low"),
        ({"name": "lines", "length": (0.5, 0.2)}, "lines.length = (0.5, 0.2): needs two numbers 0 <= low <= high <= 1"),
        ({"name": "lines", "length": 0.5}, "lines.length = 0.5: needs two numbers"),
        ({"name": "squares", "ratio": (0.1, 0.2)}, "one shape covers up to 0.250"),
        ({"name": "squares", "margin": 0.3}, "leave no room"),
        ({"name": "squares", "positions": ((0.6, 0.0),)}, "leave no room"),
        ({"name": "lines", "number": (1, 300)}, "over 256"),
        ({"name": "mixture", "weights": {"circles": 1}}, "config.mask.mixture.weights"),
        ({"name": "mixture", "lines": {"lenght": (0.1, 0.2)}}, "no field 'lenght'"),
    ],
)
def test_mistakes_in_a_spec_are_named(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_mask_spec(spec, 64)
    with pytest.raises(ValueError, match="from 8 to 1024 pixels"):
        validate_mask_spec({"name": "lines"}, 2048)
