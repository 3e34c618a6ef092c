"""Assigning pictures to train, val and test by hashes, so that the splits depend on nothing but the pictures."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

SPLITS = ("train", "val", "test")


def group_of(name: str, content_hash: str, pattern: str) -> str:
    """Returns what must stay together: the pattern's first group in the file name, or the content's hash.

    Raises:
        ValueError: the pattern is no regular expression with one group, or does not match the file name.
    """
    if not pattern:
        return content_hash
    try:
        match = re.search(pattern, PurePosixPath(name).name)
    except re.error as error:
        raise ValueError(f"config.data.group_pattern = {pattern!r} is no regular expression: {error}") from error
    if match is None or not match.groups():
        raise ValueError(f"config.data.group_pattern = {pattern!r} finds no group in {name!r}: mend the pattern")
    return match.group(1)


def position(group: str) -> float:
    """Returns the place of a group in [0, 1), uniform over groups: the head of its SHA-256."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6], "big") / 2**48


def split_by_fractions(groups: Sequence[str], fractions: Sequence[float]) -> list[int]:
    """Returns 0 (train), 1 (val) or 2 (test) for each picture by thresholds on its group's position.

    Adding or removing pictures never moves another picture.

    Raises:
        ValueError: these are no three shares.
    """
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"config.data.split_fractions = {tuple(fractions)}: give three of at least 0 that sum to 1")
    train, val = fractions[0], fractions[0] + fractions[1]
    return [0 if (p := position(group)) < train else 1 if p < val else 2 for group in groups]


def split_by_counts(groups: Sequence[str], counts: Sequence[int]) -> list[int]:
    """Returns exactly `counts` pictures of each split, in the order of their groups' positions; -1 = left over.

    Raises:
        ValueError: fewer pictures than counts, or a group that would lie in two splits.
    """
    if sum(counts) > len(groups):
        raise ValueError(f"config.data.split_counts = {tuple(counts)} asks for more than the {len(groups)} pictures")
    order = sorted(range(len(groups)), key=lambda i: (position(groups[i]), groups[i], i))
    assignment = [-1] * len(groups)
    start = 0
    for split, count in enumerate(counts):
        for i in order[start : start + count]:
            assignment[i] = split
        start += count
    seen: dict[str, int] = {}
    for i, split in enumerate(assignment):
        if seen.setdefault(groups[i], split) != split:
            raise ValueError(
                f"config.data.split_counts = {tuple(counts)} would cut the group {groups[i]!r} in two: "
                "change the counts, or use split_fractions"
            )
    return assignment
