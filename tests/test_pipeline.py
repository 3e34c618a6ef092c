"""The pipeline: batches are a function of (seed, step), whatever the restarts, hosts and threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_jax.data import pipeline
from inpaint_jax.data.source import ImageSource

SIDE = 7


def coordinates(index: int) -> np.ndarray:
    """A picture that tells where each of its pixels is from: (row, column, index)."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.stack([rows, columns, np.full_like(rows, index)], axis=-1).astype(np.uint8)


def pictures(count: int) -> ImageSource:
    return ImageSource([f"{i}" for i in range(count)], coordinates, "pictures")


def mask_pictures(count: int) -> ImageSource:
    return ImageSource([f"{i}" for i in range(count)], lambda i: np.full((SIDE, SIDE, 1), i, np.uint8), "masks")


def batches(count: int = 13, **options) -> list[dict[str, np.ndarray]]:
    defaults = {"seed": 0, "batch": 4, "start_step": 0, "stop_step": 6, "threads": 1}
    return list(pipeline.train_batches(pictures(count), **(defaults | options)))


def indices(batch: dict[str, np.ndarray]) -> list[int]:
    return batch["image"][:, 0, 0, 2].tolist()


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@given(
    count=st.integers(4, 20),
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 9),
    threads=st.integers(0, 4),
    hosts=st.sampled_from([1, 2, 4]),
    crop=st.sampled_from([0, 3]),
    masks=st.sampled_from([None, 1, 5]),
)
@settings(max_examples=12, deadline=None)
def test_restarts_threads_and_hosts_change_nothing(count, seed, start, threads, hosts, crop, masks):
    options = {"seed": seed, "stop_step": 9, "crop": crop, "masks": masks and mask_pictures(masks)}
    whole = batches(count, **options)
    assert len(whole) == 9
    by_host = [
        batches(count, **options, start_step=start, threads=threads, host=host, hosts=hosts) for host in range(hosts)
    ]
    joined = [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*by_host, strict=True)]
    assert_same(joined, whole[start:])


@given(count=st.integers(4, 30), batch=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_every_epoch_shows_each_picture_at_most_once_and_drops_the_remainder(count, batch, seed):
    per_epoch = pipeline.steps_per_epoch(count, batch)
    assert per_epoch == count // batch
    steps = batches(count, batch=batch, seed=seed, stop_step=3 * per_epoch)
    assert len(steps) == 3 * per_epoch
    for step, one in enumerate(steps):
        np.testing.assert_array_equal(one["slot"], step * batch + np.arange(batch))
        assert (one["slot"].dtype, one["image"].dtype) == (np.int32, np.uint8)
        assert one["image"].shape == (batch, SIDE, SIDE, 3)
    for epoch in range(3):
        shown = [i for one in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for i in indices(one)]
        assert len(shown) == len(set(shown)) == per_epoch * batch
        assert set(shown) <= set(range(count))


def test_epochs_and_seeds_have_orders_of_their_own_and_every_picture_comes_up():
    def order(seed, epoch):
        steps = batches(22, batch=4, seed=seed, start_step=5 * epoch, stop_step=5 * epoch + 5)
        return tuple(i for one in steps for i in indices(one))

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in range(12)}
    assert len(set(orders.values())) == len(orders)
    assert {i for (seed, _), shown in orders.items() if seed == 0 for i in shown} == set(range(22))


def test_random_windows_are_whole_pieces_at_many_places():
    steps = batches(5, batch=5, stop_step=20, crop=3)
    windows = np.concatenate([one["image"] for one in steps])
    assert windows.shape == (100, 3, 3, 3)
    corners = windows[:, 0, 0, :2]
    for window, (top, left) in zip(windows, corners, strict=True):
        np.testing.assert_array_equal(window, coordinates(window[0, 0, 2])[top : top + 3, left : left + 3])
    assert set(corners[:, 0].tolist()) == set(corners[:, 1].tolist()) == set(range(SIDE - 2))


def test_masks_of_files_are_drawn_evenly_and_anew():
    steps = batches(8, batch=8, stop_step=10, masks=mask_pictures(4))
    drawn = np.concatenate([one["mask"][:, 0, 0, 0] for one in steps])
    assert np.bincount(drawn).tolist() == [20, 20, 20, 20]
    assert not np.array_equal(drawn[:40], drawn[40:])


def test_fewer_pictures_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match=r"3 pictures.*takes 4.*config\.batch_size"):
        batches(3, batch=4)


@given(count=st.integers(1, 12), batch=st.integers(1, 5))
@settings(deadline=None)
def test_evaluation_pads_the_last_batch_at_weight_zero(count, batch):
    masks = np.stack([np.full((SIDE, SIDE, 1), i, np.uint8) for i in range(count)])
    steps = list(pipeline.evaluation_batches(pictures(20), masks, batch))
    assert all(one["image"].shape == (batch, SIDE, SIDE, 3) and one["weight"].dtype == np.float32 for one in steps)
    joined = {key: np.concatenate([one[key] for one in steps]) for key in steps[0]}
    real = joined["weight"] == 1
    assert set(np.unique(joined["weight"])) <= {0, 1}
    assert joined["index"][real].tolist() == list(range(count))
    np.testing.assert_array_equal(joined["image"][:, 0, 0, 2], joined["index"])
    np.testing.assert_array_equal(joined["mask"][:, 0, 0, 0], joined["index"])


def test_pictures_and_masks_of_slots_are_those_of_the_batches():
    images, masks = pictures(11), mask_pictures(7)
    for batch in batches(11, seed=3, start_step=1, stop_step=7, masks=masks):
        slots = batch["slot"]
        assert pipeline.pictures_of(images, seed=3, batch=4, slots=slots) == indices(batch)
        assert pipeline.mask_files_of(masks, seed=3, slots=slots) == batch["mask"][:, 0, 0, 0].tolist()
