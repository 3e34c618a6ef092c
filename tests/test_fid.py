"""FID, P-IDS and U-IDS: against closed forms and independent computations, and what they say of noise."""

import logging

import numpy as np
import pytest
import scipy.linalg
from sklearn.svm import LinearSVC

from inpaint_jax import fid


def exact_sample(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> np.ndarray:
    """A sample whose own mean is `mean` and whose own covariance (of N - 1) is root^T root, but for rounding."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    basis, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
    return basis * np.sqrt(count - 1) @ root + mean


def features(count: int, size: int, seed: int) -> np.ndarray:
    """Correlated values with a mean, as float32."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, size)) @ random.normal(size=(size, size)) / np.sqrt(size)
    return (mixed + random.normal(size=size)).astype(np.float32)


def test_distance_of_gaussians_with_a_closed_form():
    random = np.random.default_rng(0)
    means, deviations = random.normal(size=(2, 5)), random.uniform(0.5, 3, (2, 5))
    a, b = (exact_sample(60 + i, means[i], np.diag(deviations[i]), i) for i in range(2))
    # The axes are the same, so that it is the sum of those of one dimension.
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("counts", "size"), [((200, 300), 12), ((20, 15), 40)])
def test_distance_is_that_of_eigenvalues_and_of_a_matrix_root(counts, size):
    a, b = (features(count, size, seed) for seed, count in enumerate(counts))
    first, second = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    rest = np.square(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)).sum()
    rest += np.trace(first) + np.trace(second)
    eigenvalues = np.linalg.eigvals(first @ second)
    by_eigenvalues = rest - 2 * np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    found = fid.frechet_distance(a, b)
    # With fewer pictures than features most eigenvalues are 0, and the root of what rounding makes of them is not.
    assert found == pytest.approx(by_eigenvalues, rel=1e-9 if min(counts) > size else 1e-4)
    if min(counts) > size:
        assert found == pytest.approx(rest - 2 * np.trace(scipy.linalg.sqrtm(first @ second)).real, rel=1e-9)


@pytest.mark.parametrize("count", [30, 8])
def test_equal_sets_have_no_distance_and_noise_adds_to_it(count):
    real = features(count, 16, 1)
    noise = np.random.default_rng(2).normal(size=real.shape)
    distances = [fid.frechet_distance(real, real + level * noise) for level in (0, 0.3, 1, 3)]
    assert abs(distances[0]) < 1e-9
    assert distances == sorted(distances)
    assert distances[1] > 0.01
    assert fid.frechet_distance(real, real[::-1]) == pytest.approx(0, abs=1e-9)


def test_scores_are_those_of_the_authors_formulas():
    real, fake = features(120, 6, 3), features(120, 6, 4)
    fake += 0.7 * (real.mean(axis=0) - fake.mean(axis=0))
    machine = LinearSVC(dual=False)
    both, labels = np.concatenate([real, fake]), np.asarray([1] * 120 + [0] * 120)
    machine.fit(both, labels)
    scores = fid.discriminative_scores(real, fake)
    assert scores["u_ids"] == pytest.approx(1 - machine.score(both, labels), abs=1e-12)
    pairs = zip(machine.decision_function(real), machine.decision_function(fake), strict=True)
    assert scores["p_ids"] == pytest.approx(np.mean([ours > true for true, ours in pairs]))
    assert 0.05 < scores["u_ids"] < 0.5


def test_scores_of_sets_that_are_easy_or_impossible_to_tell_apart():
    real = features(400, 3, 5)
    assert fid.discriminative_scores(real, real) == {"p_ids": 0.5, "u_ids": 0.5}
    assert fid.discriminative_scores(real, real + 20) == {"p_ids": 0.0, "u_ids": 0.0}
    random = np.random.default_rng(6)
    alike = fid.discriminative_scores(random.normal(size=(400, 3)), random.normal(size=(400, 3)))
    assert all(0.4 < score < 0.6 for score in alike.values())


def test_every_method_is_compared_and_few_pictures_are_said(caplog):
    real = features(40, 8, 7)
    completed = {"ours": real + 0.1 * features(40, 8, 8), "telea": real + features(40, 8, 8)}
    with caplog.at_level(logging.WARNING, "inpaint_jax"):
        scores = fid.compare(real, completed)
    assert "FID of 40 pictures is too high, since fewer than 2048" in caplog.text
    assert list(scores) == ["ours", "telea"]
    for name, values in completed.items():
        assert scores[name]["fid"] == pytest.approx(fid.frechet_distance(real, values))
        assert scores[name].items() >= fid.discriminative_scores(real, values).items()
    assert 0 < scores["ours"]["fid"] < scores["telea"]["fid"]
    with pytest.raises(ValueError, match="at least two pictures, and there are 1"):
        fid.compare(real[:1], {"ours": real[:1]})
