"""The health of adversarial training, read from the logged rows: has the discriminator collapsed, or won?"""

from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 10  # logged rows that a verdict looks at
EARLY = 200  # steps; rows before give no verdict, because no discriminator has had the time to learn
SPAN = 200  # steps from the first of those rows to the last, at least: fewer steps are chance
WON_ACCURACY = 0.98
BLIND_GAP, BLIND_ACCURACY = 0.02, 0.01

ADVICE = {
    "won": (
        "the discriminator has won: it tells real from generated in {accuracy:.0%} of the patches (logits {real:+.2f} "
        "and {fake:+.2f}), so the generator learns little from it. What usually helps: a lower "
        "config.optimizer.discriminator_rate_ratio, a smaller config.discriminator.width, a higher weight of the "
        "reconstruction losses at first"
    ),
    "collapsed": (
        "the discriminator has collapsed: it answers the same to real and generated patches (logits {real:+.2f} and "
        "{fake:+.2f}, {accuracy:.0%} right). Either it cannot follow, which a higher "
        "config.optimizer.discriminator_rate_ratio, a larger config.discriminator.width or "
        "config.discriminator.condition = 'input' usually helps, or there is nothing left to see: then the pictures "
        "are good, and config.discriminator.name = 'none' is faster"
    ),
}
_LOGGED = ("discriminator/logit_real", "discriminator/logit_fake", "discriminator/accuracy")


def averages(rows: Sequence[Mapping]) -> dict[str, float]:
    """Returns the means of D's logits on real and generated images and of its accuracy over the last rows.

    Args:
        rows: training rows in the order of their steps; those of one network alone, or with a null, are left out.

    Returns:
        `{"real", "fake": logits, "accuracy": share of patches in [0, 1]}` over the last `WINDOW` rows; empty if there
        are fewer.
    """
    # A discriminator that learns alone is meant to win.
    both = [row for row in rows if "loss/generator" in row]
    logged = [[row[name] for name in _LOGGED] for row in both if all(row.get(name) is not None for name in _LOGGED)]
    if len(logged) < WINDOW:
        return {}
    return dict(zip(("real", "fake", "accuracy"), np.mean(logged[-WINDOW:], axis=0).tolist(), strict=True))


def diagnose(rows: Sequence[Mapping]) -> str:
    """Returns "won", "collapsed" or "" for the training rows so far.

    Won: an accuracy of at least 98%. Collapsed: mean logits less than 0.02 apart and an accuracy within one percent of
    one half, as a constant answer gives. Both over the last `WINDOW` rows, from step `EARLY` on and over `SPAN` steps.
    """
    rows = [row for row in rows if row["step"] >= EARLY][-WINDOW:]
    means = averages(rows)
    if not means or rows[-1]["step"] - rows[0]["step"] < SPAN:
        return ""
    if means["accuracy"] >= WON_ACCURACY:
        return "won"
    blind = abs(means["real"] - means["fake"]) < BLIND_GAP and abs(means["accuracy"] - 0.5) < BLIND_ACCURACY
    return "collapsed" if blind else ""


def advice(verdict: str, rows: Sequence[Mapping]) -> str:
    """Returns what `diagnose` saw, in words and figures, and what usually helps."""
    return ADVICE[verdict].format(**averages(rows))


def line(rows: Sequence[Mapping]) -> str:
    """Returns the state of both networks over the last rows in one line; empty without a discriminator."""
    means = averages(rows)
    return "D: real {real:+.2f}  fake {fake:+.2f}  right {accuracy:.0%}".format(**means) if means else ""
