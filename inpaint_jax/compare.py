"""Finished runs side by side: what may be compared, seeds of one config together, figures and tables."""

import csv
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_jax import config as config_module
from inpaint_jax import experiment, pages, run_folder
from inpaint_jax.metrics import direction_of

log = logging.getLogger("inpaint_jax")

COLUMNS = (
    *("group", "config", "seeds", "metric", "unit", "direction", "mean", "standard_deviation", "min", "max"),
)  # fmt: skip
BASELINE = "baseline"  # what stands in the column of the config for a fill that is not trained
LABEL_FIELDS = 4  # in a group's label
LABEL_VALUE = 24  # characters of a field's value there
# What has to be the same for figures to be comparable: where it stands in results.json, and what it is.
_SAME = ((("dataset", "fingerprint"), "test pictures"), (("images",), "numbers of test pictures"),
         (("mask_set",), "test masks"))  # fmt: skip
_NEEDED = (("metrics",), ("baselines",), ("hashes", "group"))

Run = dict[str, Any]  # folder, seed, config (flattened, without the seed), results
Group = dict[str, Any]  # label, lines (of the label), config (name), runs (by seed)


def read_run(folder: Path) -> Run | None:
    """Reads a run folder; None for a run that is not finished.

    Raises:
        ValueError: no such folder, not a run folder, or damaged files.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: give run folders, or a folder with run folders in it")
    if (folder / run_folder.TEST).exists() and not (folder / run_folder.CONFIG).exists():
        raise ValueError(f"{str(folder)!r} holds a test but no config.json: give folders that launch/main.py wrote")
    results = experiment.read_results(folder)
    if results is None:
        return None
    flat = config_module.flatten(config_module.from_json((folder / run_folder.CONFIG).read_bytes()))
    # Results are those of exactly this config, so that what is wrong in it was wrong in the run.
    return {"folder": folder, "seed": flat.pop("seed"), "config": flat, "results": _complete(results, folder)}


def _complete(results: dict, folder: Path) -> dict:
    """Returns results that hold all that a comparison needs; ValueError if they do not."""
    missing = [".".join(keys) for keys in (*(keys for keys, _ in _SAME), *_NEEDED) if not _has(results, keys)]
    if not missing and results["metrics"]:
        methods = results["baselines"].items()
        missing = [f"baselines.{name}" for name, values in methods if not results["metrics"].keys() <= values.keys()]
    if missing or not results["metrics"]:
        raise ValueError(
            f"test/results.json in {str(folder)!r} has no {(missing or ['metrics'])[0]}: restore it, or run the "
            "command of the run again after removing it"
        )
    return results


def _has(results: dict, keys: Sequence[str]) -> bool:
    for key in keys:
        if key not in results:
            return False
        results = results[key]
    return True


def find_runs(folders: Sequence[Path], skip_unfinished: bool) -> list[Run]:
    """Reads the run folders; a folder that is none stands for all finished runs below it, sorted by path.

    Raises:
        ValueError: a folder is not there, holds no run, or was named itself and is not finished.
    """
    runs: list[Run] = []
    for folder in folders:
        named = (folder / run_folder.CONFIG).exists() or (folder / run_folder.TEST).exists()
        below = [folder] if named or not folder.is_dir() else _run_folders_below(folder)
        if not below:
            raise ValueError(f"there is no run folder in {str(folder)!r}: give run folders, which hold a config.json")
        for path in below:
            if run := read_run(path):
                runs.append(run)
            elif named and not skip_unfinished:
                raise ValueError(
                    f"the run {str(path)!r} is not finished: it has no test/results.json of its config; run its "
                    "command again, or leave it out with --skip_unfinished"
                )
            else:
                log.warning("left out: %s is not finished", path)
    if not runs:
        raise ValueError("no finished run to compare: run the commands of the runs again until they exit with 0")
    return runs


def _run_folders_below(root: Path) -> list[Path]:
    found = []
    for path, folders, files in os.walk(root):
        if run_folder.CONFIG in files:
            found.append(Path(path))
            folders.clear()  # what lies inside a run, such as generator/config.json, is no run
    return sorted(found)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuses runs that were not tested on the same pictures with the same masks, or twice, or without a number.

    Raises:
        ValueError: names two runs and what differs.
    """
    first, seen = runs[0], {}
    for run in runs:
        for keys, what in _SAME:
            ours, theirs = (_entry(r["results"], keys) for r in (first, run))
            if ours != theirs:
                raise ValueError(
                    f"different {what}: {str(first['folder'])!r} has {'.'.join(keys)} {ours}, {str(run['folder'])!r} "
                    f"has {theirs}; compare runs of the same test"
                )
        if run["results"]["metrics"].keys() != first["results"]["metrics"].keys():
            raise ValueError(
                f"different metrics: {str(first['folder'])!r} has {', '.join(first['results']['metrics'])}, "
                f"{str(run['folder'])!r} has {', '.join(run['results']['metrics'])}; run the older command again"
            )
        for metric, value in run["results"]["metrics"].items():
            if value is None or not np.isfinite(value):
                raise ValueError(f"the run {str(run['folder'])!r} has {metric} = {value}, no number: leave it out")
        key = run["results"]["hashes"]["group"], run["seed"]
        if key in seen:
            raise ValueError(
                f"the same config and seed twice: {str(seen[key])!r} and {str(run['folder'])!r}; leave one out"
            )
        seen[key] = run["folder"]


def _entry(results: dict, keys: Sequence[str]) -> Any:
    for key in keys:
        results = results[key]
    return results


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Puts the seeds of one config together, in the order of the runs, and gives each group a short name of its own.

    Returns:
        Groups; `lines` of the label are the config's name and the fields in which groups of that name differ.
    """
    by_key: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        # Two files may hold the same config: they are two rows, as their author named them.
        name = (run["results"].get("config") or run["folder"].name).replace(".py", "", 1)
        by_key.setdefault((name, run["results"]["hashes"]["group"]), []).append(run)
    groups = []
    for (name, key), members in by_key.items():
        members.sort(key=lambda run: run["seed"])
        groups.append({"hash": key, "config": name, "runs": members})
    for group in groups:
        alike = [other["runs"][0]["config"] for other in groups if other["config"] == group["config"]]
        group["lines"] = [group["config"], *_field_texts(group["runs"][0]["config"], differing_fields(alike))]
    for group in groups:
        if sum(other["lines"] == group["lines"] for other in groups) > 1:
            group["lines"] = [*group["lines"], f"({group['hash'][:6]})"]
        group["label"] = " ".join([group["lines"][0], ", ".join(group["lines"][1:])]).strip()
    return groups


def differing_fields(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the dotted fields in which flattened configs differ, sorted; a field that one lacks differs."""
    fields = sorted(set().union(*configs))
    return [f for f in fields if any(f not in c or c[f] != configs[0].get(f) for c in configs)]


def _field_texts(config: dict[str, Any], fields: Sequence[str]) -> list[str]:
    texts = [f"{field}={value_text(config, field)}" for field in fields]
    if len(texts) > LABEL_FIELDS:
        texts = [*texts[: LABEL_FIELDS - 1], f"and {len(texts) - LABEL_FIELDS + 1} more fields"]
    return texts


def value_text(config: dict[str, Any], field: str, longest: int = LABEL_VALUE) -> str:
    """Returns the value of a field of a flattened config, at most `longest` characters long."""
    if field not in config:
        return "(absent)"
    value = config[field]
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def statistics(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns one row for each group and metric, then for each baseline and metric, in the columns of compare.csv.

    `standard_deviation` is that of a sample (n - 1), None for one seed. Baselines are not trained, so they have one
    value for all runs, that of the first.
    """
    rows = []
    first = groups[0]["runs"][0]["results"]
    series = [(g["label"], g["config"], [run["results"]["metrics"] for run in g["runs"]]) for g in groups]
    series += [(pages.METHODS.get(name, name), BASELINE, [values]) for name, values in first["baselines"].items()]
    for label, config, members in series:
        for metric in first["metrics"]:
            values = np.array([values[metric] for values in members], np.float64)
            numbers = {
                "mean": float(values.mean()),
                "standard_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
                "min": float(values.min()),
                "max": float(values.max()),
            }
            texts = {"unit": pages.METRICS.get(metric, ("", "", 0))[1], "direction": direction_of(metric)}
            row = {"group": label, "config": config, "seeds": len(values), "metric": metric, **texts, **numbers}
            row["direction"] = pages.BETTER.get(row["direction"], "")
            rows.append(row)
    return rows


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as CSV; an unknown number is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def mean_text(row: dict[str, Any]) -> str:
    """Returns "mean ± standard deviation", or the mean alone for one seed."""
    decimals = pages.METRICS.get(row["metric"], ("", "", 4))[2]
    spread = row["standard_deviation"]
    return f"{row['mean']:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread is not None else "")


def best_of(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """Returns the row with the best mean of a metric; None if it is not known which direction is better."""
    own = [row for row in rows if row["metric"] == metric]
    choose = {"min": min, "max": max}.get(direction_of(metric))
    return choose(own, key=lambda row: row["mean"]) if choose else None


def is_best(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    """Returns whether no mean of the row's metric is better."""
    best = best_of(rows, row["metric"])
    return best is not None and row["mean"] == best["mean"]


def close_to_best(rows: Sequence[dict[str, Any]], metric: str) -> list[str]:
    """Returns the groups whose mean lies within a standard deviation, the larger of the two, of the best mean."""
    best, close = best_of(rows, metric), []
    for row in rows if best else []:
        spread = max(row["standard_deviation"] or 0.0, best["standard_deviation"] or 0.0)
        if row["metric"] == metric and not is_best(rows, row) and abs(row["mean"] - best["mean"]) <= spread:
            close.append(row["group"])
    return close


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table of the hole metrics for a terminal, the best mean of each marked with a star."""
    metrics = [metric for metric in dict.fromkeys(row["metric"] for row in rows) if metric.endswith("_hole")]
    groups = dict.fromkeys(row["group"] for row in rows)
    cells = [["", "seeds", *(metric.removesuffix("_hole") for metric in metrics)]]
    for group in groups:
        own = {row["metric"]: row for row in rows if row["group"] == group}
        seeds = "" if own[metrics[0]]["config"] == BASELINE else str(own[metrics[0]]["seeds"])
        cells.append([group, seeds, *(mean_text(own[m]) + ("*" if is_best(rows, own[m]) else " ") for m in metrics)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [row[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
             for row in cells]  # fmt: skip
    lines.append("inside the hole; * the best mean; ± standard deviation of seeds")
    return "\n".join(line.rstrip() for line in lines)
