"""Masks that a test is given: files in order, sets in buckets, and what a model cannot be tested on."""

from pathlib import Path

import numpy as np
import pytest

from configs import unet_cosine
from configs.faces import attention_hole
from inpaint_jax import buckets, data, given_masks, image_files, mask_sets

NAMES = ["a.jpg", "b/c.png", "b/d.png", "e.tif"]


@pytest.fixture
def config():
    return unet_cosine.get_config("tiny")


def random_masks(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (count, 32, 32, 1), dtype=np.uint8)


def test_saved_masks_come_back_in_order(tmp_path: Path, config):
    masks = mask_sets.masks_from_pictures(random_masks(4))
    given_masks.save(masks, NAMES, tmp_path / "masks")
    files = sorted(path.relative_to(tmp_path / "masks").as_posix() for path in tmp_path.rglob("*.png"))
    assert files == ["a.png", "b/c.png", "b/d.png", "e.png"]
    written = image_files.read_rgb(tmp_path / "masks/b/d.png")
    np.testing.assert_array_equal(written, np.repeat(masks.unpack()[2] * 255, 3, axis=-1))
    assert given_masks.from_files(config, tmp_path / "masks", 4).id == masks.id
    # Six pictures: the first two masks come again.
    more = given_masks.from_files(config, tmp_path / "masks", 6).unpack()
    np.testing.assert_array_equal(more, masks.unpack()[[0, 1, 2, 3, 0, 1]])
    given_masks.save(masks, NAMES, tmp_path / "masks")


def test_names_that_would_lose_the_order_and_folders_with_pictures_are_refused(tmp_path: Path):
    masks = mask_sets.masks_from_pictures(random_masks(2))
    for names, second in ((["a.jpg", "a.png"], "a.png"), (["a.jpg", "a.k.jpg"], "a.k.png")):
        with pytest.raises(ValueError, match=rf"the mask of {names[1]} would be the file {second}, .*: rename one"):
            given_masks.save(masks, names, tmp_path / "masks")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/of_another.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has other pictures, such as of_another\.jpg.*: give another folder"):
        given_masks.save(masks, ["a.jpg", "b.jpg"], tmp_path / "masks")
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["of_another.jpg"]


def test_folders_without_masks_are_refused_by_the_name_of_the_option(tmp_path: Path, config):
    with pytest.raises(ValueError, match=r"--masks = '.*none' is no folder"):
        given_masks.from_files(config, tmp_path / "none", 2)
    image_files.write_png(tmp_path / "white.png", np.full((32, 32), 255, np.uint8))
    data.load_mask_files.cache_clear()
    with pytest.raises(ValueError, match=r"1 of 1 files below --masks cannot .*\n  white.png is all hole"):
        given_masks.from_files(config, tmp_path, 2)


def test_buckets_are_filled_and_stored_with_the_family_of_the_config_or_another(tmp_path: Path, config):
    config.mask.name = "squares"
    own = given_masks.in_buckets(config, "own", 7, tmp_path)
    assert buckets.bucket_of(own.unpack().mean(axis=(1, 2, 3))).tolist() == [1, 2, 3, 4, 5, 6, 1]
    assert len(list(tmp_path.iterdir())) == 1
    assert given_masks.in_buckets(config, "squares", 7, tmp_path).id == own.id
    assert len(list(tmp_path.iterdir())) == 1
    config.mask.evaluation_seed = 2
    assert given_masks.in_buckets(config, "own", 7, tmp_path).id != own.id


def test_masks_that_cannot_be_drawn_are_refused_with_the_ways_out(tmp_path: Path, config):
    with pytest.raises(ValueError, match=r"--bucket_masks=blobs: known are own, freeform, lines, mixture, squares"):
        given_masks.in_buckets(config, "blobs", 4, tmp_path)
    config.mask.name, config.mask.squares.size, config.mask.squares.margin = "squares", (0.25, 0.25), 0.25
    message = (
        r"over 0\.3 and up to 0\.4.*: take --bucket_masks=freeform \| lines \| mixture, or give files with --masks"
    )
    with pytest.raises(ValueError, match=message):
        given_masks.in_buckets(config, "own", 6, tmp_path)
    config.mask.name, config.mask.path = "files", "my_masks"
    with pytest.raises(ValueError, match=r"the model's own masks are pictures \(my_masks\).*--bucket_masks=freeform"):
        given_masks.in_buckets(config, "own", 4, tmp_path)


def test_holes_larger_than_the_window_of_a_model_are_refused():
    config = attention_hole.get_config("tiny")
    side = round(config.task.window * config.image_size)
    masks = np.zeros((2, config.image_size, config.image_size, 1), np.uint8)
    masks[:, 3 : 3 + side, 2 : 2 + side] = 1
    given_masks.refuse_too_large(config, mask_sets.masks_from_pictures(masks), ["a.png", "b.png"])
    masks[1, 5, 2 + side] = 1
    message = rf"the hole of b.png is {side + 1}x{side} pixels, and this model fills holes within {side}x{side}"
    with pytest.raises(ValueError, match=message):
        given_masks.refuse_too_large(config, mask_sets.masks_from_pictures(masks), ["a.png", "b.png"])
    config.task.view = "full"
    given_masks.refuse_too_large(config, mask_sets.masks_from_pictures(masks), ["a.png", "b.png"])
