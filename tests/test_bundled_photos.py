"""The embedded photographs: windows that depend on nothing but their arguments, and splits without a common picture."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import unet_photographs
from inpaint_jax import data
from inpaint_jax.data import bundled_photos

SPLITS = ("train", "val", "test")


@pytest.fixture
def config():
    return unet_photographs.get_config("tiny").data


def likeness(window: np.ndarray, image: np.ndarray) -> float:
    """The best correlation of a window with a place of a photograph, at a quarter of the resolution; 1 = cut there."""
    quarter = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    sides = range(len(window) // 4, min(quarter.shape[:2]) + 1, 4)
    views = (cv2.resize(window, (side, side), interpolation=cv2.INTER_AREA) for side in sides)
    return max(float(cv2.matchTemplate(quarter, view, cv2.TM_CCOEFF_NORMED).max()) for view in views)


def test_no_photograph_lies_in_two_splits():
    hashes = [set(bundled_photos.content_hashes(split)) for split in SPLITS]
    assert all(hashes)
    assert sum(map(len, hashes)) == len(set.union(*hashes)) == sum(map(len, bundled_photos.PHOTOGRAPHS.values()))


def test_photographs_are_large_enough_and_those_shown_are_in_colour():
    for split, names in bundled_photos.PHOTOGRAPHS.items():
        for name in names:
            image, _ = bundled_photos.photograph(name)
            assert image.dtype == np.uint8
            assert min(image.shape[:2]) >= bundled_photos.LARGEST
            if split != "train":
                assert np.ptp(image.astype(int), axis=-1).mean() > 10


@settings(max_examples=25, deadline=None)
@given(split=st.sampled_from(SPLITS), index=st.integers(0, 2**40), size=st.sampled_from([32, 64, 256]))
def test_a_window_is_a_function_of_its_arguments(split, index, size):
    window = bundled_photos.window(3, split, index, size)
    assert (window.shape, window.dtype) == ((size, size, 3), np.uint8)
    np.testing.assert_array_equal(window, bundled_photos.window(3, split, index, size))


def test_windows_come_from_the_photographs_of_their_split():
    shown = {split: bundled_photos.PHOTOGRAPHS[split] for split in ("val", "test")}
    for split in shown:
        for index in range(3):
            window = bundled_photos.window(5, split, index, 256)
            found = {
                which: max(likeness(window, bundled_photos.photograph(name)[0]) for name in names)
                for which, names in shown.items()
            }
            assert found[split] > 0.9
            assert found[split] == max(found.values())


def test_zooms_and_places_vary():
    windows = np.stack([bundled_photos.window(1, "val", i, 32) for i in range(200)])
    assert len({window.tobytes() for window in windows}) == 200
    # Small details of a close view are blurred, those of a far view are sharp: both occur.
    sharpness = [cv2.Laplacian(cv2.cvtColor(w, cv2.COLOR_RGB2GRAY), cv2.CV_64F).std() for w in windows]
    assert np.percentile(sharpness, 90) > 2 * np.percentile(sharpness, 10)


def test_threads_see_the_same_windows():
    def window(index: int) -> np.ndarray:
        return bundled_photos.window(2, "train", index, 32)

    bundled_photos._read.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(window, range(100)))
    np.testing.assert_array_equal(together, [window(i) for i in range(100)])


def test_splits_have_the_sizes_asked_for_and_grow_without_moving(config):
    splits = data.load_splits(config, 32)
    assert [len(source) for source in splits.values()] == [18, 6, 6]
    config.split_counts, config.limit = (40, 7, 6), 30
    grown = data.load_splits(config, 32)
    assert [len(source) for source in grown.values()] == [30, 7, 6]
    for split, source in splits.items():
        places = range(len(source))
        np.testing.assert_array_equal([grown[split][i] for i in places], [source[i] for i in places])
    changed = {split for split in splits if splits[split].fingerprint != grown[split].fingerprint}
    assert changed == {"train", "val"}


def test_other_bytes_of_a_photograph_change_the_fingerprint(config, tmp_path, monkeypatch):
    before = {split: source.fingerprint for split, source in data.load_splits(config, 32).items()}
    shutil.copytree(bundled_photos.folder(), tmp_path / "data")
    monkeypatch.setattr(bundled_photos, "folder", lambda: tmp_path / "data")
    assert before == {split: source.fingerprint for split, source in data.load_splits(config, 32).items()}

    shutil.copytree(tmp_path / "data", tmp_path / "newer")
    shutil.copy(tmp_path / "data" / "coffee.png", tmp_path / "newer" / "chelsea.png")
    monkeypatch.setattr(bundled_photos, "folder", lambda: tmp_path / "newer")
    after = {split: source.fingerprint for split, source in data.load_splits(config, 32).items()}
    assert {split for split in SPLITS if before[split] != after[split]} == {"val"}


def test_a_missing_photograph_is_said_at_once(config, tmp_path, monkeypatch):
    shutil.copytree(bundled_photos.folder(), tmp_path / "data")
    (tmp_path / "data" / "rocket.jpg").unlink()
    monkeypatch.setattr(bundled_photos, "folder", lambda: tmp_path / "data")
    with pytest.raises(ValueError, match=r"scikit-image has no photograph rocket\.jpg.*requirements\.txt"):
        data.load_splits(config, 32)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"kind": "normal_maps"}, 32, r"config\.data\.kind = 'normal_maps'.*bundled_photos holds photographs"),
        ({"split_counts": (5, 0, 1)}, 32, r"config\.data\.split_counts"),
        ({}, 512, r"config\.image_size = 512.*at most 256"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(config, changes, size, message):
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        data.load_splits(config, size)
