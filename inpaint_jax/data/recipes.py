"""Recipes that rebuild a published data set from named Debian packages: the same pictures, crops and splits anywhere.

A recipe is a JSON file in `recipe_files/`. It names the packages with version, SHA-256 and licence; which files of each
are pictures of the set, by shell-style patterns of names below its "root" in which `*` also matches `/` ("include", but
not "exclude" nor "near_copies"); which normal maps have a green axis that points down ("green_down": they are turned
over, so that y points up in the whole set); how pictures are cut and split; and what must come of it ("expected").
"""

import glob
import hashlib
import json
import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpaint_jax import image_files, json_files, run_folder
from inpaint_jax.data import deb_packages, folder, prepare
from inpaint_jax.data.crops import CropSettings
from inpaint_jax.data.normal_maps import is_normal_map

log = logging.getLogger("inpaint_jax")

RECIPE_FOLDER = Path(__file__).parent / "recipe_files"
KINDS = ("normal_maps", "photographs")
SOURCES = "SOURCES.md"
_KEYS = ("name", "kind", "description", "release", "check", "crops", "split_fractions", "packages", "expected")
_PACKAGE_KEYS = ("name", "version", "architecture", "sha256", "licence", "copyright", "root", "include")
_EXPECTED_KEYS = ("pictures", "pictures_sha256", "counts", "fingerprint")
# Becomes part of file names and of apt-get's command line.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]*")
# Changes whenever the same recipe would take other pictures, so that no old ones are used.
_EXTRACTION = 1

TOO_SMALL, REFUSED, REPEATED, DAMAGED = "too small for a crop", "no normal map", "the same pixels again", "unreadable"


@dataclass(frozen=True)
class Extracted:
    """The pictures that a recipe takes from its packages.

    Attributes:
        pictures: how many.
        digest: SHA-256 over the sorted lines "name sha256-of-the-file-in-the-package".
        left_out: reason -> names of matching files that are not used.
    """

    pictures: int
    digest: str
    left_out: dict[str, list[str]]


def names() -> list[str]:
    """Returns the names of the recipes that come with the project, sorted."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.json"))


def load_recipe(name: str) -> dict:
    """Returns a recipe by its name, or from a file whose name ends in `.json`.

    Raises:
        ValueError: there is no such recipe, or a field of it is missing or wrong; lists the known ones.
    """
    path = Path(name) if name.endswith(".json") else RECIPE_FOLDER / f"{name}.json"
    try:
        recipe = json_files.read(path)
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {name!r}; known are {', '.join(names())}") from None
    except ValueError as error:
        raise ValueError(f"the recipe {str(path)!r} is no JSON ({error}): mend the file") from error
    try:
        problem = next(_problems(recipe), None)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"has a value of a wrong kind ({error})"
    if problem:
        raise ValueError(f"the recipe {str(path)!r} {problem}: mend the file")
    return recipe


def _problems(recipe: dict) -> Iterator[str]:
    yield from (f"has no field {key!r}" for key in _KEYS if key not in recipe)
    for package in recipe["packages"]:
        yield from (f"has a package without {key!r}" for key in _PACKAGE_KEYS if not package.get(key))
        if not re.fullmatch("[0-9a-f]{64}", package["sha256"]):
            yield f"has for {package['name']!r} a SHA-256 that is not 64 small hexadecimal digits"
    plain = [recipe["name"], *(package[key] for package in recipe["packages"] for key in _PACKAGE_KEYS[:3])]
    yield from (f"has {text!r} as a name or version" for text in plain if not _PLAIN.fullmatch(text))
    if recipe["kind"] not in KINDS:
        yield f"is of the kind {recipe['kind']!r}; known are {', '.join(KINDS)}"
    if recipe["check"] not in ("", *CHECKS):
        yield f"asks for the check {recipe['check']!r}; known are {', '.join(CHECKS)}, or none: ''"
    if "size" not in recipe["crops"]:
        yield "has no field 'size' in 'crops'"
    CropSettings(**recipe["crops"])
    if recipe["expected"]:
        yield from (f"has no field {key!r} in 'expected'" for key in _EXPECTED_KEYS if key not in recipe["expected"])


CHECKS = {"normal_map": is_normal_map}


def extract(recipe: Mapping, packages: Sequence[Path], target: Path) -> Extracted:
    """Writes the recipe's pictures below a folder, `<target>/<package>/<path below its root>`; what is there stays.

    Files are written under a temporary name and renamed. Beside them lie, of each package, a list of its pictures and
    its copyright file.

    Args:
        recipe: from `load_recipe`.
        packages: the packages' files, in the recipe's order.
        target: the folder; it holds the pictures of one recipe and no others.

    Raises:
        ValueError: a package cannot be unpacked, or the folder holds other pictures.
    """
    seen: set[str] = set()
    pictures: dict[str, dict[str, str]] = {}
    left_out: dict[str, list[str]] = {}
    for number, path in enumerate(packages):
        record = _extract_package(recipe, number, path, target, frozenset(seen))
        seen |= {entry["pixels"] for entry in record["pictures"].values()}
        pictures |= record["pictures"]
        for reason, some in record["left_out"].items():
            left_out.setdefault(reason, []).extend(some)
    if not pictures:
        raise ValueError(f"the recipe {recipe['name']!r} finds no picture in its packages: mend its patterns")
    if strange := sorted(set(folder.find_images(target)) - pictures.keys()):
        raise ValueError(f"{str(target)!r} holds {strange[0]!r}, which is not of the recipe: remove it, and run again")
    lines = "".join(sorted(f"{name} {entry['original']}\n" for name, entry in pictures.items()))
    return Extracted(len(pictures), hashlib.sha256(lines.encode()).hexdigest(), left_out)


def _extract_package(recipe: Mapping, number: int, path: Path, target: Path, seen: frozenset[str]) -> dict:
    """Returns the list of a package's pictures, from the file where it was written, or after extracting them."""
    package = recipe["packages"][number]
    # Which pictures repeat others depends on the packages before.
    wanted = [_EXTRACTION, recipe["check"], recipe["crops"]["size"], recipe["packages"][: number + 1]]
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    notes, terms = target / f"{package['name']}.json", _copyright_file(target, package)
    if terms.is_file() and (record := _finished(notes, key, target)) is not None:
        return record
    target.mkdir(parents=True, exist_ok=True)
    log.info("unpacking %s, %d MB", path.name, path.stat().st_size >> 20)
    record = {"key": key, "pictures": {}, "left_out": {}}
    pixels = set(seen)
    root, chosen = package["root"], [glob.escape(package["root"]) + pattern for pattern in package["include"]]
    for full, content in deb_packages.members(path, [*chosen, package["copyright"]], target):
        name = full.removeprefix(root)
        if full == package["copyright"]:
            _write(terms, content)
        elif not deb_packages.matches(name, [*package.get("exclude", ()), *package.get("near_copies", ())]):
            relative, entry, reason = _take(recipe, package, name, content, target, pixels)
            if reason:
                record["left_out"].setdefault(reason, []).append(relative)
            else:
                pixels.add(entry["pixels"])
                record["pictures"][relative] = entry
    if not terms.is_file():
        raise ValueError(f"{path} holds no {package['copyright']!r}: mend the recipe {recipe['name']!r}")
    run_folder.write_json(notes, record)
    reasons = "".join(f", {len(some)} left out as {reason}" for reason, some in record["left_out"].items())
    log.info("%s: %d pictures%s", package["name"], len(record["pictures"]), reasons)
    return record


def _finished(notes: Path, key: str, target: Path) -> dict | None:
    """Returns the list of pictures if it belongs to the recipe, and all of them are there unchanged."""
    try:
        record = json_files.read(notes)
        if record["key"] != key:
            return None
        for name, entry in record["pictures"].items():
            if hashlib.sha256((target / name).read_bytes()).hexdigest() != entry["written"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # never written, or damaged: the package is extracted again
    return record


def _take(
    recipe: Mapping, package: Mapping, name: str, content: bytes, target: Path, seen: set[str]
) -> tuple[str, dict[str, str], str]:
    """Writes one picture if it can be used; returns its name below the folder, its hashes, and why not or ""."""
    relative = f"{package['name']}/{name.replace(deb_packages.INSIDE, '/')}"
    place = target / relative
    # The suffix stays, since it decides how a TGA file is read; the leading dot hides the file until it is whole.
    temporary = place.with_name(f".{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    try:
        image = image_files.read_rgb(temporary)
        pixels = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
        if min(image.shape[:2]) < recipe["crops"]["size"]:
            return relative, {}, TOO_SMALL
        if recipe["check"] and not CHECKS[recipe["check"]](image):
            return relative, {}, REFUSED
        if pixels in seen:
            return relative, {}, REPEATED
        entry = {"original": hashlib.sha256(content).hexdigest(), "pixels": pixels}
        if deb_packages.matches(name, package.get("green_down", ())):
            relative, content = f"{relative}.bmp", bmp_with_green_inverted(image)
            _write(target / relative, content)
        else:
            temporary.replace(place)
        return relative, entry | {"written": hashlib.sha256(content).hexdigest()}, ""
    except image_files.ImageFileError as error:
        log.warning("left out: %s", str(error).replace(str(temporary), relative))
        return relative, {}, DAMAGED
    finally:
        temporary.unlink(missing_ok=True)


def bmp_with_green_inverted(image: np.ndarray) -> bytes:
    """Returns a normal map whose y axis points the other way, as a BMP file of 24 bits per pixel.

    BMP since its bytes follow from the pixels alone: those of a PNG depend on the compressor's version, and the split
    of a picture depends on its bytes.

    Args:
        image: uint8 (H, W, 3).
    """
    height, width, _ = image.shape
    turned = image.copy()
    turned[..., 1] = 255 - turned[..., 1]
    rows = np.zeros((height, -(-width * 3 // 4) * 4), np.uint8)  # each row begins at a multiple of four bytes
    rows[:, : width * 3] = turned[::-1, :, ::-1].reshape(height, width * 3)  # from the bottom up, blue first
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return header + rows.tobytes()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def build(
    name: str,
    out: Path,
    packages: Path | str | None = None,
    *,
    output: str = "array_record",
    processes: int = 0,
    overwrite: bool = False,
) -> str:
    """Makes the data set `<out>/<recipe's name>`, going on where a run was stopped, and compares it with the recipe.

    Args:
        name: of the recipe, as for `load_recipe`.
        out: folder for data sets; the pictures that are cut stay in `<out>/<name>_pictures`.
        packages: folder of the packages, to which missing ones are downloaded; None = `<out>/packages`.
        output: "array_record" or "png".
        processes: as for `prepare`, and so is overwrite.

    Returns:
        Lines for a person: counts, fingerprint, how to train on it, and whether it is the published set.

    Raises:
        ValueError: a package is missing or another one, or the pictures or crops are not those of the recipe.
    """
    recipe, out = load_recipe(name), Path(out).expanduser()
    place = out / "packages" if packages is None else Path(packages).expanduser()
    pictures = out / f"{recipe['name']}_pictures"
    files = deb_packages.fetch(recipe["packages"], place, recipe["release"])
    extracted = extract(recipe, files, pictures)
    _refuse_other_pictures(recipe, extracted)
    summary = prepare.prepare(
        pictures,
        out,
        recipe["name"],
        CropSettings(**recipe["crops"]),
        output=output,
        split_fractions=recipe["split_fractions"],
        processes=processes,
        overwrite=overwrite,
        description=recipe["description"],
        licence=licences(recipe),
    )
    made = Path(summary["folder"])
    for package in recipe["packages"]:
        _write(made / "licences" / f"{package['name']}.txt", _copyright_file(pictures, package).read_bytes())
    run_folder.write_text(made / SOURCES, sources_text(recipe))
    return f"{prepare.describe(summary)}\n{compare(recipe, summary)}"


def _copyright_file(target: Path, package: Mapping) -> Path:
    return target / f"{package['name']}.copyright.txt"


def _refuse_other_pictures(recipe: Mapping, extracted: Extracted) -> None:
    expected = recipe["expected"]
    if expected and (extracted.pictures, extracted.digest) != (expected["pictures"], expected["pictures_sha256"]):
        raise ValueError(
            f"the packages gave {extracted.pictures} pictures with the SHA-256 {extracted.digest}, and the recipe "
            f"{recipe['name']!r} says {expected['pictures']} with {expected['pictures_sha256']}: "
            "use the versions in requirements.txt; if these are in use, the recipe is out of date"
        )


def compare(recipe: Mapping, summary: Mapping) -> str:
    """Returns a line that says whether a data set is the one that the recipe expects.

    Args:
        recipe: from `load_recipe`.
        summary: from `prepare`.

    Raises:
        ValueError: there are more or fewer crops in a split than expected.
    """
    expected = recipe["expected"]
    if not expected:
        return "the recipe expects nothing yet: enter counts and fingerprint in it"
    if summary["counts"] != expected["counts"]:
        raise ValueError(
            f"{summary['folder']} has the crops {summary['counts']}, and the recipe {recipe['name']!r} says "
            f"{expected['counts']}: it is not the published set; use the versions in requirements.txt"
        )
    if summary["fingerprint"] == expected["fingerprint"]:
        return "this is the published set: its fingerprint is the recipe's"
    return (
        f"warning: the same pictures and the same numbers of crops as published, but other pixels (the published "
        f"fingerprint is {expected['fingerprint']}): another version of an image decoder does this; figures measured "
        "on this set may differ from the published ones"
    )


def licences(recipe: Mapping) -> str:
    """Returns the licence of each package in one line."""
    return "; ".join(f"{package['name']} {package['version']}: {package['licence']}" for package in recipe["packages"])


def sources_text(recipe: Mapping) -> str:
    """Returns the attribution of a data set in Markdown: its packages with versions and licences."""
    rows = [
        f"| {package['name']} | {package['version']} | {package['licence']} | [text](licences/{package['name']}.txt) "
        f"| {package['sha256']} |"
        for package in recipe["packages"]
    ]
    return "\n".join(
        [
            f"# Where {recipe['name']} comes from",
            "",
            f"{recipe['description']} The pictures are from these packages of {recipe['release']}. The "
            "name of each picture begins with its package.",
            "",
            "| package | version | licence | copyright file | SHA-256 of the package |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
