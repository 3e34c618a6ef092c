"""GAN health: verdicts on hand-made rows."""

import numpy as np
import pytest

from inpaint_jax import health


def rows(real, fake, accuracy, count=health.WINDOW):
    names = ("discriminator/logit_real", "discriminator/logit_fake", "discriminator/accuracy")
    values = {"loss/generator": 1.0, **dict(zip(names, (real, fake, accuracy), strict=True))}
    return [{"step": health.EARLY + 25 * i, **values} for i in range(count)]


@pytest.mark.parametrize(
    ("real", "fake", "accuracy", "verdict"),
    [
        (6.0, -6.0, 0.999, "won"),
        (6.0, -6.0, 0.97, ""),
        (0.1, 0.1, 0.5, "collapsed"),
        (-3.0, -3.01, 0.505, "collapsed"),
        (0.3, 0.07, 0.58, ""),  # as in a sound run of the flagship
        (0.3, 0.27, 0.5, ""),
        (0.0, 0.0, 0.3, ""),
    ],
)
def test_verdicts(real, fake, accuracy, verdict):
    history = rows(real, fake, accuracy)
    assert health.diagnose(history) == verdict
    assert health.diagnose(history[1:]) == "", "too few rows to tell"
    assert health.diagnose([{**row, "step": row["step"] - 1} for row in history]) == "", "too early to tell"
    close = [{**row, "step": health.EARLY + i} for i, row in enumerate(history)]
    assert health.diagnose(close) == "", "ten steps in a row are chance"
    if verdict:
        words = health.advice(verdict, history)
        assert f"{real:+.2f}" in words
        assert "config.optimizer.discriminator_rate_ratio" in words


def test_only_the_last_rows_count_and_rows_without_a_discriminator_are_left_out():
    sound, won = rows(0.5, -0.5, 0.7), rows(8.0, -8.0, 1.0)
    assert health.diagnose(won + sound) == ""
    assert health.diagnose(sound + won) == "won"
    nulls = [{"step": 0, "discriminator/logit_real": None, "discriminator/logit_fake": 0.0}] * 30
    judge_alone = [{name: value for name, value in row.items() if name != "loss/generator"} for row in won]
    assert health.diagnose(judge_alone) == ""
    generator_alone = [{"step": 0, "loss/generator": 1.0}] * 30
    assert health.diagnose(generator_alone) == health.line(generator_alone) == ""
    assert health.diagnose(won + nulls + generator_alone) == "won"


def test_the_line_shows_means_of_the_window():
    mixed = [row for i in range(health.WINDOW) for row in rows(float(i), -1.0, i / health.WINDOW, count=1)]
    assert health.averages(mixed)["real"] == np.mean(range(health.WINDOW))
    assert health.line(mixed) == "D: real +4.50  fake -1.00  right 45%"
