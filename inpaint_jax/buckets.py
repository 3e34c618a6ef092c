"""Figures by the share of the picture that is hole: means in ranges of it, and a row for every picture.

The ranges are those of the masks of G. Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions",
ECCV 2018, and what lies below and above.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from inpaint_jax import metrics

# Bounds of a bucket: above the first, up to and including the second. A picture without a hole is in the first bucket.
BUCKETS = ((0.0, 0.01), (0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 1.0))
DRAWN = BUCKETS[1:-1]  # those that sets of masks are drawn for

ByMethod = Mapping[str, Mapping[str, np.ndarray]]


def name_of(bucket: tuple[float, float]) -> str:
    """Returns what a bucket is called, such as "10-20 %"."""
    over, up_to = (f"{100 * bound:.0f}" for bound in bucket)
    return f"over {over} %" if bucket == BUCKETS[-1] else f"{over}-{up_to} %"


def bucket_of(ratios: np.ndarray) -> np.ndarray:
    """Returns the place in `BUCKETS` of each hole ratio, int (N,), for ratios in [0, 1]."""
    return np.searchsorted([up_to for _, up_to in BUCKETS[:-1]], ratios, side="left")


def headline(names: Iterable[str]) -> str:
    """Returns the metric that stands for all where there is room for one: the angle of normal maps, else hole PSNR."""
    angle = "angular_error_deg_hole"
    return angle if angle in names else "psnr_db_hole"


def by_bucket(methods: ByMethod, ratios: np.ndarray) -> list[dict[str, Any]]:
    """Returns the figures of every bucket that has pictures, for `results.json`.

    Args:
        methods: `{"ours": {metric: (N,)}, baseline: …}`.
        ratios: (N,), hole pixels / all pixels.
    """
    places, rows = bucket_of(ratios), []
    for place, bucket in enumerate(BUCKETS):
        chosen = places == place
        if not chosen.any():
            continue
        means = {
            method: metrics.mean_metrics({name: values[chosen] for name, values in per_image.items()})
            for method, per_image in methods.items()
        }
        rows.append(
            {
                "name": name_of(bucket),
                "hole_ratio_over": bucket[0],
                "hole_ratio_up_to": bucket[1],
                "images": int(chosen.sum()),
                "metrics": means.pop("ours"),
                "baselines": means,
            }
        )
    return rows


def buckets_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the figures of `by_bucket` as CSV, a line for every bucket and method."""
    bounds, names = ("hole_ratio_over", "hole_ratio_up_to", "images"), list(rows[0]["metrics"])
    lines = [["bucket", *bounds, "method", *names]]
    for row in rows:
        for method, values in {"ours": row["metrics"], **row["baselines"]}.items():
            lines.append([row["name"], *(row[bound] for bound in bounds), method, *(values[name] for name in names)])
    return _csv(lines)


def per_image_csv(methods: ByMethod, ratios: np.ndarray, names: Sequence[str]) -> str:
    """Returns the metrics of every picture as CSV: index, name, hole_ratio, ours_psnr_db_full, …, telea_l1_hole, ….

    What is the ratio of two means in `results.json` stands here in its two parts, such as `ours_gradient_hole` and
    `ours_true_gradient_hole`; see `metrics.RATIOS`.

    Args:
        names: of the pictures, such as their files.
    """
    columns = {f"{method}_{name}": values for method, of in methods.items() for name, values in of.items()}
    lines = [["index", "name", "hole_ratio", *columns]]
    for index, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        lines.append([index, name, float(ratio), *(float(values[index]) for values in columns.values())])
    return _csv(lines)


def _csv(lines: Iterable[Sequence]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Seven digits: all that a float32 has.
    writer.writerows([f"{cell:.7g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
    return text.getvalue()


def bucket_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table of the headline metric as lines of text: a column for every bucket, a row for every method."""
    metric = headline(rows[0]["metrics"])
    widths = [max(9, len(row["name"]) + 2) for row in rows]
    lines = [
        ("hole ratio", [row["name"] for row in rows]),
        ("images", [str(row["images"]) for row in rows]),
        ("ours", [f"{row['metrics'][metric]:.3f}" for row in rows]),
    ]
    for method in rows[0]["baselines"]:
        lines.append((method, [f"{row['baselines'][method][metric]:.3f}" for row in rows]))
    return [
        f"{title:<14}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for title, cells in lines
    ]
