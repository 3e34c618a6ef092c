"""Reading `test/results.json`, which people copy about and mend by hand: figures are checked before they are used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inpaint_jax import buckets, json_files

_MOST = 1e15  # no figure of a test reaches it
_TEXTS = ("config", "mask_set")
_COUNTS = ("images", "parameters")
_TEXT_TABLES = ("hashes", "dataset")


def read(path: Path) -> dict[str, Any]:
    """Returns the results of a test; what is missing in them is left to who needs it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or one of its fields is of another kind than a test writes.
    """
    results = json_files.parse(path.read_bytes())
    if not isinstance(results, dict):
        raise ValueError("it holds no results of a test")
    if wrong := _wrong(results):
        raise ValueError(f"its {wrong} is not what a test writes")
    return results


def _wrong(results: Mapping[str, Any]) -> str:
    """Returns the name of a field that is of another kind than a test writes, or ""."""
    checks = {
        **dict.fromkeys(_TEXTS, lambda value: isinstance(value, str)),
        **dict.fromkeys(_COUNTS, _is_count),
        **dict.fromkeys(_TEXT_TABLES, lambda value: _is_table(value, lambda one: isinstance(one, str))),
        "metrics": _is_figures,
        "losses": _is_figures,
        "baselines": lambda value: _is_table(value, _is_figures),
        "train": lambda value: isinstance(value, dict),
        "large_holes": lambda value: _is_part(value, ("hole_ratio_over",)),
        "buckets": _is_rows,
    }
    return next((name for name, fits in checks.items() if name in results and not fits(results[name])), "")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_figure(value: Any) -> bool:
    # A lost run has figures that are no numbers.
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) >= _MOST)


def _is_table(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _is_figures(value: Any) -> bool:
    return _is_table(value, _is_figure)


def _is_part(value: Any, more: tuple[str, ...] = ()) -> bool:
    """Returns whether these are the figures of some of the pictures."""
    return (
        isinstance(value, dict)
        and _is_count(value.get("images"))
        and _is_figures(value.get("metrics"))
        and _is_table(value.get("baselines"), _is_figures)
        and all(_is_figure(value.get(name)) for name in more)
    )


def _is_rows(value: Any) -> bool:
    """Returns whether these are the figures by hole ratio: in each row the same methods, and their headline."""
    if not isinstance(value, list) or not all(_is_part(row) and isinstance(row.get("name"), str) for row in value):
        return False
    methods = [{"ours": row["metrics"], **row["baselines"]} for row in value]
    wanted = buckets.headline(value[0]["metrics"]) if value else ""
    return all(of.keys() == methods[0].keys() and all(wanted in figures for figures in of.values()) for of in methods)
