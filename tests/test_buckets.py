"""Figures by hole ratio: which bucket a picture is in, means, tables, and sets of masks that fill the buckets."""

import csv
import io

import numpy as np
import pytest

from inpaint_jax import buckets, mask_sets, metrics

SIZE = 32
# Ratios on and beside the bounds -> the bucket.
RATIOS = {
    0.0: "0-1 %",
    0.01: "0-1 %",
    0.011: "1-10 %",
    0.1: "1-10 %",
    0.6: "50-60 %",
    0.601: "over 60 %",
    1: "over 60 %",
}


def methods(count: int) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    names = ("psnr_db_hole", "l1_hole", "gradient_hole", "true_gradient_hole")
    return {
        method: {name: random.uniform(1, 9, count).astype(np.float32) for name in names} for method in ("ours", "telea")
    }


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_bounds_belong_to_the_bucket_below():
    places = buckets.bucket_of(np.asarray(list(RATIOS)))
    assert [buckets.name_of(buckets.BUCKETS[place]) for place in places] == list(RATIOS.values())
    # Shares of pixels meet the bounds exactly.
    assert buckets.bucket_of(np.asarray([np.zeros((10, 10)), np.ones((10, 10))]).mean(axis=(1, 2))).tolist() == [0, 7]
    exact = np.asarray([np.arange(100) < pixels for pixels in (10, 20, 30, 40, 50, 60)]).mean(axis=1)
    assert buckets.bucket_of(exact).tolist() == [1, 2, 3, 4, 5, 6]


def test_each_bucket_with_pictures_has_their_means():
    ratios = np.asarray([0.05, 0.25, 0.07, 0.25, 0.7])
    figures = methods(5)
    rows = buckets.by_bucket(figures, ratios)
    assert [(row["name"], row["images"]) for row in rows] == [("1-10 %", 2), ("20-30 %", 2), ("over 60 %", 1)]
    assert [(row["hole_ratio_over"], row["hole_ratio_up_to"]) for row in rows] == [(0.01, 0.1), (0.2, 0.3), (0.6, 1.0)]
    for row, chosen in zip(rows, ([0, 2], [1, 3], [4]), strict=True):
        for method, means in (("ours", row["metrics"]), ("telea", row["baselines"]["telea"])):
            expected = figures[method]
            assert means["l1_hole"] == pytest.approx(expected["l1_hole"][chosen].mean())
            ratio = expected["gradient_hole"][chosen].sum() / expected["true_gradient_hole"][chosen].sum()
            assert means["gradient_ratio_hole"] == pytest.approx(ratio, rel=1e-4)

    table = rows_of(buckets.buckets_csv(rows))
    assert [(line["bucket"], line["method"]) for line in table[:3]] == [
        ("1-10 %", "ours"),
        ("1-10 %", "telea"),
        ("20-30 %", "ours"),
    ]
    assert float(table[3]["l1_hole"]) == pytest.approx(rows[1]["baselines"]["telea"]["l1_hole"], rel=1e-6)
    assert table[3]["images"] == "2"

    lines = [line.split() for line in buckets.bucket_table(rows)]
    assert lines[0] == ["hole", "ratio", "1-10", "%", "20-30", "%", "over", "60", "%"]
    assert lines[1] == ["images", "2", "2", "1"]
    assert lines[3] == ["telea", *(f"{row['baselines']['telea']['psnr_db_hole']:.3f}" for row in rows)]


def test_every_picture_has_a_line_with_its_name_and_figures():
    figures, ratios = methods(3), np.asarray([0.05, 1 / 3, 0.7])
    table = rows_of(buckets.per_image_csv(figures, ratios, ["a.png", 'b, "c".png', "ä/d.png"]))
    assert [line["name"] for line in table] == ["a.png", 'b, "c".png', "ä/d.png"]
    assert [line["index"] for line in table] == ["0", "1", "2"]
    np.testing.assert_allclose([float(line["hole_ratio"]) for line in table], ratios, rtol=1e-6)
    for method, values in figures.items():
        for name, expected in values.items():
            found = np.asarray([line[f"{method}_{name}"] for line in table], np.float32)
            np.testing.assert_array_equal(found, np.asarray([f"{value:.7g}" for value in expected], np.float32))
    assert len(table[0]) == 3 + 2 * 4


def test_the_angle_stands_for_normal_maps_and_psnr_for_photographs():
    assert buckets.headline(metrics.validated_metrics(True, False)) == "angular_error_deg_hole"
    assert buckets.headline(metrics.validated_metrics(False, True)) == "psnr_db_hole"


def test_masks_fill_the_buckets_in_turn_whatever_the_count():
    masks = mask_sets.masks_in_buckets({"name": "squares"}, buckets.DRAWN, 20, SIZE, SIZE, seed=3)
    unpacked = masks.unpack()
    assert buckets.bucket_of(unpacked.mean(axis=(1, 2, 3))).tolist() == [1 + i % 6 for i in range(20)]
    assert len(np.unique(masks.packed, axis=0)) == 20
    assert masks.id.startswith(f"squares-buckets-20-{SIZE}x{SIZE}-")
    few = mask_sets.masks_in_buckets({"name": "squares"}, buckets.DRAWN, 4, SIZE, SIZE, seed=3)
    np.testing.assert_array_equal(few.packed, masks.packed[:4])
    other = mask_sets.masks_in_buckets({"name": "squares"}, buckets.DRAWN, 4, SIZE, SIZE, seed=4)
    assert not np.array_equal(other.packed, few.packed)


@pytest.mark.parametrize("family", ["lines", "freeform", "mixture"])
def test_every_family_reaches_the_largest_bucket(family):
    masks = mask_sets.masks_in_buckets({"name": family}, buckets.DRAWN[-1:], 5, 64, 64)
    assert buckets.bucket_of(masks.unpack().mean(axis=(1, 2, 3))).tolist() == [6] * 5


def test_a_family_that_cannot_fill_a_bucket_is_refused():
    spec = {"name": "squares", "squares": {"size": (0.25, 0.25), "margin": 0.25}}
    message = r"of 256 masks of the family 'squares' drawn at 32x32, 0 have a hole ratio over 0\.3 and up to 0\.4"
    with pytest.raises(ValueError, match=message):
        mask_sets.masks_in_buckets(spec, buckets.DRAWN[3:4], 2, SIZE, SIZE)


def test_shapes_of_a_set_in_buckets_are_those_of_its_masks():
    masks = mask_sets.masks_in_buckets({"name": "squares"}, buckets.DRAWN[:2], 4, SIZE, SIZE)
    for shapes, mask in zip(masks.shapes, masks.unpack()[..., 0], strict=True):
        drawn = np.zeros((SIZE, SIZE), np.uint8)
        for _, x0, y0, x1, y1, _ in shapes[shapes[:, 0] == 2]:
            drawn[y0 : y1 + 1, x0 : x1 + 1] = 1
        np.testing.assert_array_equal(drawn, mask)
