"""Pictures of a prepared TensorFlow Datasets set, read without TensorFlow and without the code that prepared it."""

import bisect
import hashlib
import io
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from inpaint_jax import image_files, json_files, object_store, run_folder
from inpaint_jax.data import remote_files

log = logging.getLogger("inpaint_jax")

# What names the class of a feature in features.json, now and in older sets, and what the name must begin with.
_CLASS, _OWN = ("pythonClassName", "python_class_name", "type"), "tensorflow_datasets.core.features."
MANIFEST_VERSION = 1
PICTURE = "picture"  # the feature that names the picture from which a crop was cut
_VALIDATION = ("validation", "val")


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set, opened for reading; any thread may read.

    Attributes:
        name: name and version, such as "celeb_a/2.1.0".
        identity: changes whenever the set was prepared from other pictures.
        records: split -> encoded examples, random access.
        shape: of every picture, (height, width, channels); None where they differ.
        decode: example -> uint8 (H, W, channels).
        fields: example -> the encoded picture and the feature "picture", "" where the set has none.
        has_picture: whether it has the text feature "picture".
    """

    name: str
    identity: str
    records: dict[str, Sequence[bytes]]
    shape: tuple[int | None, ...]
    decode: Callable[[bytes], np.ndarray]
    fields: Callable[[bytes], tuple[bytes, str]]
    has_picture: bool


def open_prepared(name: str, data_dir: str) -> PreparedSet:
    """Opens a data set that was prepared in the format array_record, from its files alone.

    Args:
        name: as TFDS knows it, such as "celeb_a", "my_crops:1.0.0" or "set/config"; needs a feature "image".
        data_dir: where it was prepared, a folder or a URL; "" = TFDS's own default. From a URL, the files that describe
            the set are fetched now, and each file of records when one of its records is read.

    Raises:
        ValueError: no such data set there, a damaged one, another file format, or no 8-bit feature "image".
    """
    if not name:
        raise ValueError("the tfds source needs the name of a data set: set config.data.name")
    remote = None
    if object_store.is_url(data_dir):
        remote = remote_files.listed(data_dir, name.partition(":")[0])
        object_store.each(lambda file: remote_files.local(remote, file), _descriptions(remote))
    given, data_dir = data_dir, str(remote.root) if remote else data_dir
    # Imported here: it takes a second, which users of folders need not wait.
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        _refuse_foreign_features(name, data_dir)
        # Not `tfds.builder`: where it knows the set's code, it looks for the version of the code, not of the files.
        builder = tfds.core.read_only_builder.builder_from_files(
            name, data_dir=str(Path(data_dir).expanduser()) if data_dir else None
        )
        # Whole examples as bytes: TFDS would decode every feature, of celeb_a fifty beside the picture.
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        records = {
            str(split): _fetching(remote, info, builder.as_data_source(split, deserialize_method=method))
            for split, info in sorted(builder.info.splits.items())
            if info.num_examples
        }
    except (
        *(tfds.core.DatasetNotFoundError, NotImplementedError, AssertionError, OSError, ImportError),
        *(ValueError, json_format.ParseError),  # of damaged files that describe the set
    ) as error:
        reason = f"{error}".partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"the TFDS data set {name!r} cannot be read from {given or 'the default data_dir'!r} ({reason}): "
            "prepare it with file_format='array_record' (launch/prepare_data.py does), and set config.data.path"
        ) from error
    features = dict(builder.info.features.items())
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"the TFDS data set {name!r} has no feature 'image' of 8-bit pictures: choose another set")
    has_picture = isinstance(features.get(PICTURE), tfds.features.Text)
    only_image = tfds.features.FeaturesDict({"image": image})
    wanted = {"image": image, PICTURE: tfds.features.Text()} if has_picture else {"image": image}
    both, undecoded = tfds.features.FeaturesDict(wanted), {"image": tfds.decode.SkipDecoding()}

    def fields(record: bytes) -> tuple[bytes, str]:
        example = both.deserialize_example_np(record, decoders=undecoded)
        return example["image"], example[PICTURE].decode() if has_picture else ""

    return PreparedSet(
        name=builder.info.full_name,
        identity=_identity(builder.info.full_name, builder.info.splits, records),
        records=records,
        shape=tuple(image.shape),
        decode=lambda record: only_image.deserialize_example_np(record)["image"],
        fields=fields,
        has_picture=has_picture,
    )


def _descriptions(remote: remote_files.RemoteFiles) -> list[str]:
    return [name for name in remote.versions if ".array_record" not in name]


class _Fetching(Sequence):
    """Records of a split, each of whose files is fetched when one of its records is read for the first time."""

    def __init__(self, remote: remote_files.RemoteFiles, files: Sequence, records: Sequence[bytes]):
        self._remote, self._records = remote, records
        self._names = [Path(file.filename).relative_to(remote.root).as_posix() for file in files]
        self._ends = [*itertools.accumulate(file.take for file in files)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        name = self._names[bisect.bisect_right(self._ends, index)]
        if name not in self._remote.versions:
            raise RuntimeError(f"{self._remote.store.url} has no {name}")
        remote_files.local(self._remote, name)
        return self._records[index]


def _fetching(remote: remote_files.RemoteFiles | None, info: Any, records: Sequence[bytes]) -> Sequence[bytes]:
    return records if remote is None else _Fetching(remote, info.file_instructions, records)


def _refuse_foreign_features(name: str, data_dir: str) -> None:
    """Raises ValueError if a description of the set names a class that is not TFDS's own.

    TFDS would import whatever module is named there, and with it run what that module says.
    """
    from tensorflow_datasets.core.utils import file_utils

    for root in file_utils.list_data_dirs(given_data_dir=str(Path(data_dir).expanduser()) if data_dir else None):
        for path in sorted(Path(root, name.partition(":")[0]).rglob("features.json")):
            left = [json_files.read(path)]
            while left:
                inner = left.pop()
                if isinstance(inner, dict | list):
                    left += inner.values() if isinstance(inner, dict) else inner
                named = [str(inner[key]) for key in _CLASS if key in inner] if isinstance(inner, dict) else []
                if foreign := [one for one in named if "." in one and not one.startswith(_OWN)]:
                    raise ValueError(f"{path} names the class {foreign[0]}, which is not TFDS's own")


def _identity(name: str, infos: dict, records: dict[str, Sequence[bytes]]) -> str:
    digest = hashlib.sha256(name.encode())
    for split, source in records.items():
        # Sizes and two examples: reading a large set through would take minutes at every start.
        digest.update(f"{split} {infos[split].num_examples} {infos[split].num_bytes}".encode())
        digest.update(_record(name, source, 0) + _record(name, source, len(source) - 1))
    return f"{name} {digest.hexdigest()[:16]}"


def _record(name: str, source: Sequence[bytes], index: int) -> bytes:
    try:
        return source[index]
    except RuntimeError as error:  # of array_record
        raise ValueError(
            f"a file of the TFDS data set {name!r} is missing or damaged ({error}): copy it again, or prepare the set "
            "again"
        ) from error


def own_splits(prepared: PreparedSet, wanted: Sequence[str]) -> tuple[str, str, str] | None:
    """Returns the set's own splits for train, val and test; None where it has none of its own for all three.

    Args:
        wanted: `config.data.split_folders`; empty names = train, validation or val, and test.

    Raises:
        ValueError: a split is named that the set does not have, or one twice, or not all three are named.
    """
    known = sorted(prepared.records)
    if any(wanted):
        if not set(wanted) <= set(known) or len(set(wanted)) < 3:
            raise ValueError(
                f"config.data.split_folders = {tuple(wanted)}: name three different splits of {prepared.name!r}, "
                f"which has {', '.join(known)}, or none"
            )
        return tuple(wanted)
    validation = [split for split in _VALIDATION if split in known]
    if "train" in known and "test" in known and validation:
        return "train", validation[0], "test"
    return None


def examine(prepared: PreparedSet, cache: Path | None) -> dict[str, tuple[int, str]]:
    """Returns `{record name: (shorter side in pixels, source picture or "")}`, without decoding a picture.

    Args:
        cache: JSON file of an earlier call, used where the set is still the same; None = read every record.

    Raises:
        ValueError: a record holds no picture.
    """
    if cache is not None and cache.exists():
        try:
            stored = json_files.read(cache)
            if (stored["version"], stored["identity"]) == (MANIFEST_VERSION, prepared.identity):
                if stored["sha256"] != json_files.digest(stored["records"]):
                    raise ValueError("it is not as it was written")
                return {name: (side, picture) for name, (side, picture) in stored["records"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the manifest %s is unreadable (%s) and is made anew", cache, error)

    def look(place: tuple[str, int]) -> tuple[int, str]:
        split, index = place
        encoded, picture = prepared.fields(_record(prepared.name, prepared.records[split], index))
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                return min(image.size), picture
        except (OSError, UnidentifiedImageError) as error:
            raise _damaged(prepared, record_name(split, index), error) from error

    places = [(split, i) for split, source in prepared.records.items() for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        records = {record_name(*place): found for place, found in zip(places, pool.map(look, places), strict=True)}
    if cache is not None:
        content = {"version": MANIFEST_VERSION, "identity": prepared.identity, "records": records}
        content["sha256"] = json_files.digest(records)
        run_folder.write_text(cache, json.dumps(content, indent=0))
    return records


def record_name(split: str, index: int) -> str:
    """Returns the name of a record in reports, which also decides its split where all are pooled."""
    return f"{split}/{index:08d}"


def refuse_small(prepared: PreparedSet, sides: dict[str, int], size: int) -> None:
    """Raises ValueError if a picture is smaller than a crop of `size` pixels, by the shorter sides of the records."""
    small = [name for name, side in sides.items() if side < size]
    if small:
        raise ValueError(
            f"{len(small)} of {len(sides)} pictures of the TFDS data set {prepared.name!r} are too small for "
            f"config.data.fit = 'crop' with config.image_size = {size}; the first is {small[0]} with "
            f"{sides[small[0]]} pixels on its shorter side: prepare the set without them, or use fit = 'resize'"
        )


def loader(
    prepared: PreparedSet, places: Sequence[tuple[str, int]], size: int, fit: str
) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 3) of (split, record) `places[index]`; `fit` "whole" leaves it as it is.

    Grey becomes RGB; an alpha channel is dropped, not blended.
    """

    def load(index: int) -> np.ndarray:
        split, place = places[index]
        record = _record(prepared.name, prepared.records[split], place)
        try:
            image = prepared.decode(record)
        # TFDS passes on what its decoder returns for a damaged picture: nothing.
        except (AttributeError, OSError) as error:
            raise _damaged(prepared, record_name(split, place), error) from error
        image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        return image if fit == "whole" else image_files.fit_square(image, size, fit)

    return load


def _damaged(prepared: PreparedSet, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name} of the TFDS data set {prepared.name!r} holds no picture ({error}): prepare the set again without it"
    )
