"""Splits: stability, groups, shares and exact counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_jax.data import splits

NAMES = st.lists(st.text(max_size=8), min_size=1, max_size=30)


@given(NAMES, NAMES, st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(deadline=None)
def test_by_fractions_other_pictures_never_move_a_picture(groups, others, cuts):
    low, high = sorted(cuts)
    fractions = (low, high - low, 1 - high)
    alone = splits.split_by_fractions(groups, fractions)
    together = splits.split_by_fractions([*others, *groups], fractions)
    assert together[len(others) :] == alone
    assert [splits.split_by_fractions([group], fractions)[0] for group in groups] == alone
    by_group = dict(zip(groups, alone, strict=True))
    assert alone == [by_group[group] for group in groups]


@given(st.text(max_size=5), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.3, 0.7, 0.0)]))
@settings(max_examples=20, deadline=None)
def test_by_fractions_many_groups_come_near_the_shares(prefix, fractions):
    assignment = splits.split_by_fractions([f"{prefix}{i}" for i in range(4000)], fractions)
    shares = np.bincount(assignment, minlength=3) / 4000
    np.testing.assert_allclose(shares, fractions, atol=0.045)


@given(st.data())
@settings(deadline=None)
def test_by_counts_are_exact_and_independent_of_the_order(data):
    groups = data.draw(st.lists(st.text(max_size=8), min_size=3, max_size=30, unique=True))
    cuts = sorted(data.draw(st.tuples(*[st.integers(0, len(groups))] * 3)))
    counts = (cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1])
    assignment = splits.split_by_counts(groups, counts)
    assert tuple(assignment.count(split) for split in range(3)) == counts
    assert assignment.count(-1) == len(groups) - sum(counts)
    shuffled = data.draw(st.permutations(groups))
    expected = dict(zip(groups, assignment, strict=True))
    assert splits.split_by_counts(shuffled, counts) == [expected[group] for group in shuffled]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_by_counts_groups_stay_together_where_they_fit(train, val, test, copies):
    groups = [f"group {i}" for i in range(train + val + test) for _ in range(copies)]
    assignment = splits.split_by_counts(groups, (train * copies, val * copies, test * copies))
    assert len(set(zip(groups, assignment, strict=True))) == train + val + test


@pytest.mark.parametrize(
    ("split", "groups", "shares", "message"),
    [
        (splits.split_by_counts, ["a", "b"], (1, 1, 1), "split_counts.*more than the 2 pictures"),
        (splits.split_by_counts, ["a", "a", "a"], (1, 1, 1), "split_counts.*group 'a' in two"),
        (splits.split_by_fractions, ["a"], (0.8, 0.1, 0.2), "split_fractions.*sum to 1"),
        (splits.split_by_fractions, ["a"], (1.2, -0.1, -0.1), "split_fractions.*at least 0"),
    ],
)
def test_impossible_splits_are_refused(split, groups, shares, message):
    with pytest.raises(ValueError, match=message):
        split(groups, shares)


def test_groups_come_from_the_file_name_or_from_the_content():
    pattern = r"^\d+_(.*)_\d+_\d+\.png$"
    assert splits.group_of("maps/0007_brick_wall_0_256.png", "hash", pattern) == "brick_wall"
    assert splits.group_of("maps/0007_brick_wall_0_256.png", "hash", "") == "hash"


@pytest.mark.parametrize("pattern", ["(unclosed", "no group", "(absent)"])
def test_a_pattern_that_finds_no_group_is_named(pattern):
    with pytest.raises(ValueError, match=r"config\.data\.group_pattern"):
        splits.group_of("no group.png", "hash", pattern)
