"""Makes a data set of crops from a folder of pictures: checked, split by content, resumable, never half-written.

The work goes through a hidden folder beside the result, `<out>/.<name>.partial`: one file of encoded crops for each
finished picture, then the whole data set, which is renamed to `<out>/<name>` when it is complete.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from inpaint_jax import json_files, run_folder
from inpaint_jax.data import crop_files, folder, splits
from inpaint_jax.data.crop_files import SPLITS, VERSION, Crop
from inpaint_jax.data.crops import CropSettings, scaled_side

log = logging.getLogger("inpaint_jax")

SUMMARY = "dataset.json"
_CHECKED_AT_ONCE = 64


@dataclass(frozen=True)
class Checked:
    """What was found in a folder of pictures.

    Attributes:
        hashes: name -> SHA-256 of the file, of all pictures that can be used, each content once.
        bad: name -> what is wrong, of files that cannot be read.
        small: name -> what is wrong, of pictures smaller than a crop.
        copies: name -> what is wrong, of pictures whose content another one has.
        files_hash: of the names and contents of all files.
    """

    hashes: dict[str, str]
    bad: dict[str, str]
    small: dict[str, str]
    copies: dict[str, str]
    files_hash: str


def check(source: Path, crops: CropSettings, processes: int = 0, cache: Path | None = None) -> Checked:
    """Reads every picture below a folder, and returns which can be used, and why others cannot.

    Args:
        source: the folder; pictures lie at any depth.
        crops: says how large a picture must be.
        processes: pictures read at once; 0 = one per core.
        cache: folder in which checked files are noted, so that an interrupted check goes on; None = nothing is written.

    Raises:
        ValueError: no such folder, or no picture in it.
    """
    names = _find(source)
    manifest: dict[str, dict] = {}
    with crop_files.progress("checking", len(names)) as advance:
        for start in range(0, len(names), _CHECKED_AT_ONCE):
            some = names[start : start + _CHECKED_AT_ONCE]
            notes = cache and cache / f"manifest_{start:08d}.json"
            manifest |= folder.read_manifest(source, some, notes, processes or crop_files.cores())
            advance(len(some))
    hashes, bad, small, copies, first = {}, {}, {}, {}, {}
    for name, entry in manifest.items():
        if entry["verdict"]:
            bad[name] = entry["verdict"].removeprefix(f"{source / name} ").replace(f"{source / name}", "the file")
        elif scaled_side(entry["side"], crops.scale) < crops.size:
            scale = f", scaled by {crops.scale:g}" if crops.scale != 1 else ""
            small[name] = (
                f"has {entry['side']} pixels on its shorter side{scale}: too small for a crop of {crops.size}."
            )
        elif (twin := first.setdefault(entry["hash"], name)) != name:
            copies[name] = f"is a copy of {twin}."
        else:
            hashes[name] = entry["hash"]
    return Checked(hashes, bad, small, copies, _files_hash({name: entry["hash"] for name, entry in manifest.items()}))


def report(checked: Checked) -> str:
    """Returns a table of what cannot be used with the reasons, and a line of numbers."""
    rows = checked.bad | checked.small
    lines = []
    if rows:
        wide = max(4, *map(len, rows))
        lines = [f"{name:{wide}}  {reason}" for name, reason in {"FILE": "WHAT IS WRONG", **rows}.items()]
    numbers = f"{len(checked.hashes)} good, {len(checked.bad)} bad, {len(checked.small)} too small for a crop"
    return "\n".join([*lines, f"{numbers}, {len(checked.copies)} copies of others"])


def prepare(
    source: Path,
    out: Path,
    name: str,
    crops: CropSettings,
    *,
    output: str = "array_record",
    split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
    group_pattern: str = "",
    skip_bad: int = 0,
    processes: int = 0,
    overwrite: bool = False,
    description: str = "",
    homepage: str = "",
    licence: str = "",
    citation: str = "",
) -> dict:
    """Cuts the pictures below a folder into a data set `<out>/<name>` of three splits; goes on where a run was killed.

    Args:
        source: folder of pictures, at any depth.
        out: folder for data sets; needs twice the data set's space until it is finished.
        name: of the data set: small letters, digits and underscores.
        crops: what is cut.
        output: "array_record", read with `tfds.builder(name, data_dir=out)`, or "png", three folders of files.
        split_fractions: shares of train, validation and test; pictures are placed by a hash of their content.
        group_pattern: regular expression; pictures with the same first group in their file names share a split.
        skip_bad: so many unreadable files are left out; more are an error.
        processes: pictures cut at once; 0 = one per core. The result does not depend on it.
        overwrite: replace a data set of this name that was made in another way.
        description: kept with the data set, as are homepage, licence and citation.

    Returns:
        What `dataset.json` holds: "counts" (crops) and "pictures" by split, "left_out" (picture -> reason),
        "fingerprint" (SHA-256 over the sorted lines "split/picture top left sha256-of-pixels"), "request"; and
        "folder", "already_there".

    Raises:
        ValueError: a setting, the pictures, or the place to write to is at fault; the message says what to do.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    final, partial = out / name, out / f".{name}.partial"
    texts = {"description": description, "homepage": homepage, "license": licence, "citation": citation}
    # 2 and 2.0 are the same setting.
    crops = replace(crops, min_detail=float(crops.min_detail), scale=float(crops.scale))
    request = {
        "crops": asdict(crops),
        "output": output,
        "split_fractions": [float(fraction) for fraction in split_fractions],
        "group_pattern": group_pattern,
        "texts": texts,
    }
    _refuse_names(name, output, source, final)
    # Before anything is written, and not after all pictures were read.
    _find(source)
    with _told_as_options():
        splits.split_by_fractions([], split_fractions)
    try:
        was_there = final.exists()
        if was_there and (existing := _existing(source, final, request, overwrite)) is not None:
            if crop_files.parts_folder(partial, crops).exists():  # a kill came between the last two steps
                with _lock(partial):
                    _remove(partial)
            log.info("%s is already there, made from the same pictures in the same way", final)
            return existing | {"folder": str(final), "already_there": True}
        with _lock(partial):
            if final.exists() != was_there:
                raise ValueError(f"another process wrote {str(final)!r} meanwhile: run the command again")
            checked = check(source, crops, processes, partial / "checked")
            pictures = _assign(checked, split_fractions, group_pattern, skip_bad, crops)
            parts = crop_files.cut(source, partial, checked.hashes, crops, processes)
            chosen = {split: crop_files.read_parts(hashes, parts) for split, hashes in pictures.items()}
            chosen = _apart(chosen)
            summary = _summary(name, chosen, checked, crops) | {"request": request | {"files": checked.files_hash}}
            crop_files.WRITERS[output](partial / "result", name, chosen, crops.size, texts)
            run_folder.write_json(partial / "result" / SUMMARY, summary)
            _put_in_place(partial / "result", final, partial)
    except OSError as error:
        raise ValueError(
            f"the data set cannot be written below {str(out)!r} ({error}): make room or choose another --out; "
            "the same command goes on from here"
        ) from error
    return summary | {"folder": str(final), "already_there": False}


def _find(source: Path) -> list[str]:
    if not source.is_dir():
        raise ValueError(f"there is no folder {str(source)!r}: set --source to the folder with the pictures")
    return folder.find_images(source, "--source")


def _files_hash(hashes: Mapping[str, str]) -> str:
    lines = sorted(f"{name} {content}\n" for name, content in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _refuse_names(name: str, output: str, source: Path, final: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"--name {name!r}: begin with a small letter, then small letters, digits and underscores")
    if output not in crop_files.WRITERS:
        raise ValueError(f"--output {output!r}: known are {', '.join(crop_files.WRITERS)}")
    inside, outside = final.resolve(), source.resolve()
    if outside in inside.parents or inside == outside or inside in outside.parents:
        raise ValueError(f"the data set {str(final)!r} and its source {str(source)!r} overlap: choose another --out")
    if output == "array_record":
        import tensorflow_datasets as tfds

        # Under such a name TFDS would look for its own data set, and not at the files.
        if name in tfds.list_builders(with_community_datasets=False):
            raise ValueError(f"--name {name!r} is a data set of TFDS itself: choose another, such as {name}_crops")


def _existing(source: Path, final: Path, request: dict, overwrite: bool) -> dict | None:
    """Returns the summary of a data set that is as requested; None = it is not, and may be replaced."""
    try:
        summary = json_files.read(final / SUMMARY)
        made = dict(summary["request"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(final)!r} exists and is no data set of this command: choose another --name, or remove it yourself"
        ) from error
    if {**made, "files": None} == {**request, "files": None}:

        def content(name: str) -> str:
            with contextlib.suppress(OSError):  # an unreadable file counts as such here and when it is checked
                return hashlib.sha256((source / name).read_bytes()).hexdigest()
            return ""

        names = _find(source)
        with ThreadPoolExecutor(crop_files.cores()) as pool:
            if made["files"] == _files_hash(dict(zip(names, pool.map(content, names), strict=True))):
                return summary
    if not overwrite:
        raise ValueError(
            f"{str(final)!r} was made from other pictures or with other settings: "
            "choose another --name, or replace it with --overwrite"
        )
    return None


@contextlib.contextmanager
def _lock(partial: Path) -> Iterator[IO[str]]:
    # The operating system's lock, so that a kill frees it.
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process works in {str(partial)!r}: wait for it, or choose another --name"
            ) from None
        yield file


def _assign(
    checked: Checked, fractions: Sequence[float], pattern: str, skip_bad: int, crops: CropSettings
) -> dict[str, dict[str, str]]:
    """Returns name -> content hash of each split's pictures; raises ValueError where no data set can come of them."""
    if len(checked.bad) > skip_bad:
        listed = "".join(f"\n  {name} {reason}" for name, reason in itertools.islice(checked.bad.items(), 10))
        more = f"\n  and {len(checked.bad) - 10} more; --check lists all" if len(checked.bad) > 10 else ""
        raise ValueError(
            f"{len(checked.bad)} files cannot be used; mend or remove them, "
            f"or allow for them with --skip_bad {len(checked.bad)}:{listed}{more}"
        )
    for left_out, reason in ((checked.bad, "unreadable"), (checked.small, "too small"), (checked.copies, "copies")):
        _log_left_out(left_out, reason)
    if not checked.hashes:
        raise ValueError(f"no picture is large enough for a crop of {crops.size} pixels: choose a smaller --size")
    names = sorted(checked.hashes)
    with _told_as_options():
        groups = [splits.group_of(name, checked.hashes[name], pattern) for name in names]
        assignment = splits.split_by_fractions(groups, fractions)
    pictures: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name, split in zip(names, assignment, strict=True):
        pictures[SPLITS[split]][name] = checked.hashes[name]
    _refuse_empty({split: len(some) for split, some in pictures.items()}, "pictures", "")
    return pictures


@contextlib.contextmanager
def _told_as_options() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("config.data.", "--")) from error


def _log_left_out(names: Sequence[str] | Mapping[str, str], reason: str) -> None:
    if names:
        first = ", ".join(itertools.islice(names, 5))
        log.warning("pictures left out as %s: %d (%s%s)", reason, len(names), first, ", ..." if len(names) > 5 else "")


def _refuse_empty(counts: Mapping[str, int], what: str, mend: str) -> None:
    if empty := [split for split in SPLITS if not counts[split]]:
        listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        raise ValueError(
            f"the {empty[0]} split is empty ({what}: {listed}): add pictures, or change --split_fractions{mend}"
        )


def _apart(chosen: Mapping[str, Sequence[Crop]]) -> dict[str, list[Crop]]:
    """Returns the crops without those whose pixels lie in another split too: they stay in test, then in validation."""
    result, seen = {}, set()
    for split in reversed(SPLITS):
        result[split] = [crop for crop in chosen[split] if crop.pixels_hash not in seen]
        seen |= {crop.pixels_hash for crop in result[split]}
    if dropped := sum(len(chosen[split]) - len(result[split]) for split in SPLITS):
        log.warning("left out %d crops that lie in another split too, pixel by pixel", dropped)
    return {split: result[split] for split in SPLITS}


def _summary(name: str, chosen: Mapping[str, Sequence[Crop]], checked: Checked, crops: CropSettings) -> dict:
    """Returns what `dataset.json` says about the crops; raises ValueError if a split has none."""
    used = {split: {crop.picture for crop in some} for split, some in chosen.items()}
    unused = sorted(checked.hashes.keys() - set().union(*used.values()))
    _log_left_out(unused, "without a crop to use")
    counts = {split: len(some) for split, some in chosen.items()}
    _refuse_empty(counts, "crops", ", or lower --min_detail" if crops.min_detail else "")
    lines = sorted(
        f"{split}/{crop.picture} {crop.top} {crop.left} {crop.pixels_hash}"
        for split in SPLITS
        for crop in chosen[split]
    )
    reason = f"has no crop with a detail of {crops.min_detail:g} or more, or none that is not in another split too."
    return {
        "name": name,
        "version": VERSION,
        "counts": counts,
        "pictures": {split: len(some) for split, some in used.items()},
        "left_out": {**checked.bad, **checked.small, **checked.copies, **dict.fromkeys(unused, reason)},
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def _put_in_place(result: Path, final: Path, partial: Path) -> None:
    """Renames the finished data set; the one it replaces is removed after that."""
    os.sync()  # once for many files: a power cut after the renaming must not find them empty
    replaced = partial / "replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    try:
        result.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    _remove(partial)


def _remove(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    if partial.exists():
        log.warning("%s is no longer needed, and cannot be removed: remove it yourself", partial)


def describe(summary: dict) -> str:
    """Returns lines for a person: how many crops, the fingerprint, and how to train on them."""
    place, request = Path(summary["folder"]), summary["request"]
    numbers = [f"{split} {summary['counts'][split]} (of {summary['pictures'][split]} pictures)" for split in SPLITS]
    path = shlex.quote(str(place.parent))
    options = f"--config.data.source=tfds --config.data.name={summary['name']} --config.data.path={path}"
    if request["output"] == "png":
        path, folders = shlex.quote(str(place)), "\"('train', 'validation', 'test')\""
        options = f"--config.data.source=folder --config.data.path={path} --config.data.split_folders={folders}"
    return (
        f"{place}: crops of {request['crops']['size']} pixels: {', '.join(numbers)}\n"
        f"fingerprint {summary['fingerprint']}\ntrain with {options}"
    )
