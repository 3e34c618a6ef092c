"""FID, P-IDS and U-IDS: how near a set of completed pictures comes to their truths in the eyes of InceptionV3.

Unlike the metrics of single pictures they do not ask that a hole be filled as it was, only that it look like a real
picture. What is compared: all completed pictures of a test, known pixels included, with the truths of the same
pictures. Where holes are small, most of what is compared is known: figures of different masks do not compare.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from inpaint_jax.inception import FEATURES

log = logging.getLogger("inpaint_jax")


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the Fréchet distance of two sets as if each were of a Gaussian; of Inception's features it is FID.

    M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
    equation 6: |m_a - m_b|^2 + trace(A + B - 2 (A B)^(1/2)) for means m and covariances A and B (of N - 1).

    Args:
        a, b: (N, D) and (M, D), at least two rows each.

    Returns:
        At least 0 but for rounding; 0 for equal sets.

    Raises:
        ValueError: fewer than two rows.
    """
    return _distance(_mean_and_root(a), _mean_and_root(b))


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (D,), and R (min(N, D), D) whose product R^T R is the covariance."""
    if len(features) < 2:
        raise ValueError(f"FID needs at least two pictures, and there are {len(features)}: test on more")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")


def _distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    # The trace of (R^T R S^T S)^(1/2) is the sum of the singular values of R S^T: no square root of a matrix, which
    # would lose half of the digits where there are fewer pictures than features.
    shared = np.linalg.svd(a[1] @ b[1].T, compute_uv=False).sum()
    return float(sum(np.square(part).sum() for part in (a[0] - b[0], a[1], b[1])) - 2 * shared)


def require_classifier() -> Any:
    """Returns the module of scikit-learn with the classifier of P-IDS and U-IDS.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from sklearn import svm
    except ImportError as error:
        raise ValueError("P-IDS and U-IDS need scikit-learn: pip install -r requirements.txt") from error
    return svm


def discriminative_scores(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Computes the paired and the unpaired inception discriminative score.

    S. Zhao et al., "Large Scale Image Completion via Co-Modulated Generative Adversarial Networks", ICLR 2021, section
    4: a linear support vector machine is fitted to tell features of truths from features of completed pictures. P-IDS
    is how often it takes a completed picture for more real than the truth of the same picture, U-IDS how often it errs.
    It is fitted as the authors do, by LIBLINEAR, primal, squared hinge, C = 1, to the pictures that it then judges.

    Args:
        real, fake: (N, D); row i of both belongs to one picture.

    Returns:
        `p_ids` and `u_ids` in [0, 1], higher is better; 0.5 where nothing tells the sets apart. Both of a pair judged
        alike, as of a picture without a hole, count as half.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    classifier = require_classifier().LinearSVC(dual=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        classifier.fit(np.concatenate([real, fake]), np.repeat([1, 0], len(real)))
    if any("converge" in str(warning.message) for warning in said):
        log.warning("the classifier of P-IDS and U-IDS was not fitted to the end: take these two with care")
    true, ours = (classifier.decision_function(features) for features in (real, fake))
    errors = np.concatenate([ours > 0, true <= 0])
    return {"p_ids": float(np.mean((ours > true) + 0.5 * (ours == true))), "u_ids": float(np.mean(errors))}


def compare(real: np.ndarray, completed: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Returns `fid`, `p_ids` and `u_ids` of every set of completed pictures against their truths.

    Args:
        real: Inception's features of the truths, (N, 2048).
        completed: those of the completed pictures, (N, 2048), by method.

    Raises:
        ValueError: fewer than two pictures, or scikit-learn is not installed.
    """
    if len(real) < FEATURES:
        log.warning(
            "FID of %d pictures is too high, since fewer than %d leave the covariance of %d features without full "
            "rank; P-IDS and U-IDS are too low, since so few are told apart by chance: compare them only with those of "
            "the same pictures and masks",
            *(len(real), FEATURES, FEATURES),
        )
    truth = _mean_and_root(real)
    return {
        name: {"fid": _distance(truth, _mean_and_root(features)), **discriminative_scores(real, features)}
        for name, features in completed.items()
    }
