"""Recipes: packages read without dpkg, only what is named and whole, and a set that is compared with the published."""

import fnmatch
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inpaint_jax import image_files
from inpaint_jax.data import deb_packages, recipes
from inpaint_jax.data.procedural_normals import render_normal_map

ROOT = Path(__file__).parents[1]
SIZE = 32
RELEASE = "Debian 12 (bookworm)"
SHELF = "usr/share/games/first/"


def picture_bytes(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def normal_map(index: int) -> np.ndarray:
    return np.asarray(render_normal_map(0, index, SIZE))


def noise(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_deb(path: Path, files: dict[str, bytes], compression: str = "xz") -> None:
    """Writes a package as dpkg-deb does: an ar archive of debian-binary, control.tar.* and data.tar.*."""

    def tar(entries: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in entries.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            link = tarfile.TarInfo("./usr/share/link_norm.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        return {"xz": lzma.compress, "gz": gzip.compress}.get(compression, lambda data: data)(buffer.getvalue())

    parts = {"debian-binary": b"2.0\n", f"control.tar.{compression}": tar({"control": b"odd length"})}
    content = b"!<arch>\n"
    for name, part in {**parts, f"data.tar.{compression}": tar(files)}.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    path.write_bytes(content)


FIRST = {
    "usr/share/doc/first/copyright": b"License: CC0-1.0",
    f"{SHELF}a_norm.png": picture_bytes(normal_map(0)),
    f"{SHELF}a_colour.png": picture_bytes(noise(1)),
    f"{SHELF}sub/photo_norm.png": picture_bytes(noise(2)),
    f"{SHELF}sub/small_norm.png": picture_bytes(normal_map(1)[:16]),
    f"{SHELF}sub/left_norm.png": picture_bytes(normal_map(2)),
    f"{SHELF}sub/near_norm.png": picture_bytes(normal_map(3)),
    f"{SHELF}broken_norm.png": picture_bytes(normal_map(4))[:200],
}
SECOND = {
    "usr/share/doc/second/copyright": b"License: GPL-2+",
    "usr/share/second/pack.pk3": zip_bytes(
        {
            "textures/b_norm.tga": picture_bytes(normal_map(5), "TGA"),
            "textures/down/c_norm.png": picture_bytes(normal_map(6)),
            "textures/again_norm.tga": picture_bytes(normal_map(0), "TGA"),
            "models/d_norm.tga": picture_bytes(normal_map(7), "TGA"),
        }
    ),
}
TAKEN = ["first/a_norm.png", "second/b_norm.tga", "second/down/c_norm.png.bmp"]


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder of two packages: an xz one with plain files, a gz one with pictures in a nested archive."""
    folder = tmp_path / "packages"
    folder.mkdir()
    write_deb(folder / "first_1.0-1_all.deb", FIRST)
    write_deb(folder / "second_2%3a3.1_all.deb", SECOND, "gz")
    return folder


@pytest.fixture
def recipe(packages) -> dict:
    """A recipe of these packages, which expects nothing."""

    def package(name: str, version: str, file: str, root: str, **more) -> dict:
        digest = hashlib.sha256((packages / file).read_bytes()).hexdigest()
        place = {"copyright": f"usr/share/doc/{name}/copyright", "root": root}
        about = {"name": name, "version": version, "architecture": "all", "sha256": digest, "licence": f"of {name}"}
        return about | place | more

    first = package("first", "1.0-1", "first_1.0-1_all.deb", SHELF, include=["*_norm.png"])
    first |= {"exclude": ["sub/left*"], "near_copies": ["sub/near_norm.png"]}
    root = "usr/share/second/pack.pk3//textures/"
    second = package("second", "2:3.1", "second_2%3a3.1_all.deb", root, include=["*_norm.*"], green_down=["down/*"])
    return {
        "name": "little",
        "kind": "normal_maps",
        "description": "Little maps.",
        "release": RELEASE,
        "check": "normal_map",
        "crops": {"size": SIZE, "how": "grid", "per_picture": 1, "min_detail": 0.1},
        "split_fractions": [0.8, 0.1, 0.1],
        "packages": [first, second],
        "expected": {},
    }


def fetch(recipe: dict, folder: Path) -> list[Path]:
    return deb_packages.fetch(recipe["packages"], folder, recipe["release"])


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exactly_the_named_pictures_are_taken_and_the_rest_is_accounted_for(recipe, packages, tmp_path):
    extracted = recipes.extract(recipe, fetch(recipe, packages), tmp_path / "out")
    files = files_below(tmp_path / "out")
    assert [name for name in sorted(files) if not name.endswith((".json", ".txt"))] == TAKEN
    assert extracted.pictures == 3
    assert files["first/a_norm.png"] == FIRST[f"{SHELF}a_norm.png"]
    assert files["second/b_norm.tga"] == picture_bytes(normal_map(5), "TGA")
    assert files["first.copyright.txt"] == b"License: CC0-1.0"
    assert files["second.copyright.txt"] == b"License: GPL-2+"
    assert extracted.left_out == {
        recipes.REFUSED: ["first/sub/photo_norm.png"],
        recipes.TOO_SMALL: ["first/sub/small_norm.png"],
        recipes.DAMAGED: ["first/broken_norm.png"],
        recipes.REPEATED: ["second/again_norm.tga"],
    }


def test_a_map_with_y_down_is_turned_over(recipe, packages, tmp_path):
    recipes.extract(recipe, fetch(recipe, packages), tmp_path)
    written = image_files.read_rgb(tmp_path / "second/down/c_norm.png.bmp")
    down = np.asarray(render_normal_map(0, 6, SIZE, "down"))
    np.testing.assert_array_equal(written[..., ::2], normal_map(6)[..., ::2])
    assert np.abs(written.astype(int) - down).max() <= 1  # of rounding 127.5 either way


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_bmp_of_a_turned_map_reads_back(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(recipes.bmp_with_green_inverted(image))) as file:
        read = np.array(file.convert("RGB"))
    read[..., 1] = 255 - read[..., 1]
    np.testing.assert_array_equal(read, image)


def test_what_is_there_is_not_unpacked_again_and_what_is_lost_is(recipe, packages, tmp_path):
    target, files = tmp_path / "out", fetch(recipe, packages)
    first = recipes.extract(recipe, files, target)
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(b"gone")
    assert recipes.extract(recipe, files, target) == first
    (target / TAKEN[0]).unlink()
    with pytest.raises(ValueError, match=r"first_1\.0-1_all\.deb is no Debian package"):
        recipes.extract(recipe, files, target)
    for path, content in whole.items():
        path.write_bytes(content)
    assert recipes.extract(recipe, files, target) == first
    assert (target / TAKEN[0]).read_bytes() == FIRST[f"{SHELF}a_norm.png"]


def test_another_recipe_takes_its_own_pictures_and_names_what_is_left_of_the_first(recipe, packages, tmp_path):
    recipes.extract(recipe, fetch(recipe, packages), tmp_path)
    recipe["packages"][0]["exclude"] = ["a_norm.png"]
    with pytest.raises(ValueError, match=r"holds 'first/a_norm\.png', which is not of the recipe: remove it"):
        recipes.extract(recipe, fetch(recipe, packages), tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_cut_package_is_refused_and_leaves_no_half_picture(share, recipe, packages, tmp_path):
    path = packages / "first_1.0-1_all.deb"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"first_1\.0-1_all\.deb (cannot be unpacked|holds no data\.tar)"):
        list(deb_packages.members(path, ["*"]))
    with pytest.raises(ValueError, match="complete copy"):
        recipes.extract(recipe, [path, packages / "second_2%3a3.1_all.deb"], tmp_path / "out")
    left = {name: content for name, content in files_below(tmp_path / "out").items() if name.startswith("first/")}
    assert all(content == FIRST[SHELF + name.removeprefix("first/")] for name, content in left.items())
    path.write_bytes(whole)
    assert recipes.extract(recipe, fetch(recipe, packages), tmp_path / "out").pictures == 3


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has a decoder")
def test_zstandard_without_a_decoder_is_named(packages):
    write_deb(packages / "z.deb", FIRST, "zst")
    with pytest.raises(ValueError, match=r"z\.deb is compressed with zstandard, which this Python cannot read"):
        list(deb_packages.members(packages / "z.deb", ["*"]))


@pytest.mark.parametrize("name", ["../o_norm.png", "/etc/o_norm.png", "a/../../o_norm.png", "c:\\o_norm.png"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_name_that_leaves_the_folder_is_refused(name, nested, tmp_path):
    files = {"usr/p.pk3": zip_bytes({name: b"x"})} if nested else {name: b"x"}
    write_deb(tmp_path / "evil.deb", files)
    patterns = ["usr/p.pk3//*_norm.png"] if nested else ["*_norm.png"]
    with pytest.raises(ValueError, match="would lie outside its folder"):
        list(deb_packages.members(tmp_path / "evil.deb", patterns))


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_too_large_to_be_a_picture_is_not_read(nested, tmp_path, monkeypatch):
    monkeypatch.setattr(deb_packages, "_LARGEST", 10_000)  # of a gigabyte, to spare the disk
    files = {"small.png": b"x", "bomb.png": bytes(20_000)}
    write_deb(tmp_path / "b.deb", {"usr/p.pk3": zip_bytes(files)} if nested else files)
    found = deb_packages.members(tmp_path / "b.deb", ["usr/p.pk3//*.png"] if nested else ["*.png"])
    assert next(found)[1] == b"x"
    with pytest.raises(ValueError, match=r"b\.deb holds '.*bomb\.png' with 20000 bytes"):
        next(found)


def test_another_package_is_refused_by_its_hash(recipe, packages):
    path = packages / "first_1.0-1_all.deb"
    right = recipe["packages"][0]["sha256"]
    path.write_bytes(path.read_bytes() + b"\n")
    wrong = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(
        ValueError, match=f"{re.escape(str(path))} is not first 1.0-1 .* is {wrong}, and must be {right}"
    ):
        fetch(recipe, packages)


def test_missing_packages_are_listed_where_there_is_no_apt_get(recipe, packages, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for path in packages.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="apt-get is not on this machine") as error:
        fetch(recipe, packages)
    text = str(error.value)
    assert RELEASE in text
    assert f"first_1.0-1_all.deb  SHA-256 {recipe['packages'][0]['sha256']}" in text
    assert f"second_3.1_all.deb  SHA-256 {recipe['packages'][1]['sha256']}" in text


def apt_get(folder: Path, archive: Path) -> None:
    """Puts a program called apt-get into a folder, which copies packages from another one."""
    script = f'#!/bin/sh\n[ "$1" = download ] || exit 9\n/bin/cp "{archive}/${{2%%=*}}"_* . || '
    (folder / "apt-get").write_text(script + "{ echo 'E: no such version' >&2; exit 100; }\n")
    (folder / "apt-get").chmod(0o755)


def test_missing_packages_are_downloaded_and_only_whole_ones_stay(recipe, packages, tmp_path, monkeypatch):
    programs, mine = tmp_path / "bin", tmp_path / "mine"
    programs.mkdir()
    apt_get(programs, packages)
    monkeypatch.setenv("PATH", str(programs))
    assert [path.name for path in fetch(recipe, mine)] == ["first_1.0-1_all.deb", "second_2%3a3.1_all.deb"]
    assert files_below(mine) == files_below(packages)
    for path in mine.iterdir():
        path.unlink()
    cut = packages / "second_2%3a3.1_all.deb"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is not second 2:3.1 as the recipe names it"):
        fetch(recipe, mine)
    assert [path.name for path in mine.iterdir()] == ["first_1.0-1_all.deb"]
    cut.unlink()
    with pytest.raises(ValueError, match=r"'apt-get download second=2:3.1' failed \(no such version\)"):
        fetch(recipe, mine)


def many_maps(recipe: dict, packages: Path) -> Path:
    """Makes the first package one of forty maps, so that each split has some; returns the recipe's file."""
    maps = {f"{SHELF}{i:02d}_norm.png": picture_bytes(normal_map(i)) for i in range(40)}
    path = packages / "first_1.0-1_all.deb"
    write_deb(path, {"usr/share/doc/first/copyright": b"CC0", **maps})
    recipe["packages"] = [{**recipe["packages"][0], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    return save(recipe, packages)


def save(recipe: dict, packages: Path) -> Path:
    path = packages / "little.json"
    path.write_text(json.dumps(recipe))
    return path


def test_a_rebuilt_set_is_compared_with_what_the_recipe_expects(recipe, packages, tmp_path):
    many_maps(recipe, packages)
    out = tmp_path / "data"

    def build() -> str:
        return recipes.build(str(save(recipe, packages)), out, packages, output="png", processes=1)

    assert "expects nothing yet" in build()
    made = json.loads((out / "little/dataset.json").read_text())
    extracted = recipes.extract(recipe, fetch(recipe, packages), out / "little_pictures")
    assert sum(made["counts"].values()) == extracted.pictures == 40
    assert "| first | 1.0-1 | of first | [text](licences/first.txt) |" in (out / "little/SOURCES.md").read_text()
    assert (out / "little/licences/first.txt").read_bytes() == b"CC0"

    right = {"pictures": 40, "pictures_sha256": extracted.digest}
    right |= {"counts": made["counts"], "fingerprint": made["fingerprint"]}
    recipe["expected"] = right
    assert "this is the published set" in build()
    recipe["expected"] = right | {"fingerprint": "0" * 64}
    assert re.search(f"warning: the same pictures .* but other pixels .* fingerprint is {'0' * 64}", build())
    recipe["expected"] = right | {"counts": {**made["counts"], "test": 1}}
    with pytest.raises(ValueError, match="it is not the published set"):
        build()
    recipe["expected"] = right | {"pictures": 41}
    with pytest.raises(ValueError, match=r"gave 40 pictures .* 'little' says 41"):
        build()


def test_the_command_builds_a_recipe_and_refuses_what_the_recipe_decides(recipe, packages, tmp_path):
    def run(*options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "launch/prepare_data.py"), *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    path = many_maps(recipe, packages)
    built = run("--recipe", path, "--packages", packages, "--out", tmp_path / "data", "--output=png", "--processes=1")
    assert built.returncode == 0, built.stderr
    assert "expects nothing yet" in built.stdout
    assert len(list((tmp_path / "data/little").glob("*/*.png"))) == 40
    unknown = run("--recipe", "faces", "--out", tmp_path)
    assert unknown.returncode == 1
    known = "landscapes, landscapes_public_domain, normal_maps"
    assert unknown.stderr == f"error: there is no recipe 'faces'; known are {known}\n"
    mixed = run("--recipe", "landscapes", "--out", tmp_path, "--size", 64)
    assert mixed.returncode == 2
    assert "--size does not go with --recipe" in mixed.stderr


def test_normal_maps_are_told_from_other_pictures():
    for index in range(5):
        good = np.asarray(render_normal_map(1, index, 64))
        assert recipes.is_normal_map(good)
        assert not recipes.is_normal_map(good[..., ::-1])  # blue and red changed places
        holes = good.copy()
        holes[:1] = 0  # 1.6% of the pixels
        assert not recipes.is_normal_map(holes)
    assert not recipes.is_normal_map(noise(0))
    assert not recipes.is_normal_map(np.full((8, 8, 3), 255, np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe.pop("crops"), "has no field 'crops'"),
        (lambda recipe: recipe.update(kind="faces"), "is of the kind 'faces'; known are normal_maps, photographs"),
        (lambda recipe: recipe.update(check="nice"), "asks for the check 'nice'"),
        (lambda recipe: recipe["packages"][0].pop("licence"), "has a package without 'licence'"),
        (lambda recipe: recipe["packages"][0].update(sha256="12"), "has for 'first' a SHA-256 that is not 64"),
        (lambda recipe: recipe["packages"][0].update(name="../first"), "has '../first' as a name or version"),
        (lambda recipe: recipe["packages"][0].update(version="-o=Dir=/"), "has '-o=Dir=/' as a name or version"),
        (lambda recipe: recipe["crops"].pop("size"), "has no field 'size' in 'crops'"),
        (lambda recipe: recipe["crops"].update(sides=3), "has a value of a wrong kind"),
        (lambda recipe: recipe.update(packages=["first"]), "has a value of a wrong kind"),
        (lambda recipe: recipe.update(expected={"counts": {}}), "has no field 'pictures' in 'expected'"),
    ],
)
def test_a_wrong_recipe_is_refused(change, message, recipe, packages):
    change(recipe)
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.load_recipe(str(save(recipe, packages)))


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_are_complete(name):
    text = (recipes.RECIPE_FOLDER / f"{name}.json").read_text()
    recipe = recipes.load_recipe(name)
    assert recipe["name"] == name
    assert "http" not in text
    assert len({package["name"] for package in recipe["packages"]}) == len(recipe["packages"])
    for package in recipe["packages"]:
        lists = [package.get(key, []) for key in ("include", "exclude", "near_copies", "green_down")]
        assert all(re.compile(fnmatch.translate(pattern)) for patterns in lists for pattern in patterns)
        assert all(len(set(patterns)) == len(patterns) for patterns in lists)
        for left_out in package.get("near_copies", []):
            assert deb_packages.matches(left_out, package["include"]), "a pattern that leaves nothing out"
    expected = recipe["expected"]
    assert min(expected["counts"].values()) > 50
    assert all(len(expected[key]) == 64 for key in ("pictures_sha256", "fingerprint"))
    assert abs(sum(recipe["split_fractions"]) - 1) < 1e-9


@pytest.mark.slow
@pytest.mark.skipif("INPAINT_PACKAGES_DIR" not in os.environ, reason="INPAINT_PACKAGES_DIR names no folder of packages")
@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_give_the_published_sets(name, tmp_path):
    said = recipes.build(name, tmp_path, Path(os.environ["INPAINT_PACKAGES_DIR"]), output="png")
    assert "this is the published set" in said
