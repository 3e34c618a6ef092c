"""Pictures of a TensorFlow Datasets builder, read without TensorFlow through `tfds.data_source`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from inpaint_jax import image_files


def open_pictures(name: str, data_dir: str) -> tuple[list[str], list[Callable[[], np.ndarray]], str]:
    """Returns the names and loaders of all pictures of a prepared data set, and what identifies it.

    Args:
        name: as TFDS knows it, such as "celeb_a" or "my_maps:1.0.0"; prepared in the format array_record, with a
            feature "image".
        data_dir: where it was prepared; "" = TFDS's own default.

    Raises:
        ValueError: no such data set there, another file format, or no feature "image".
    """
    if not name:
        raise ValueError("the tfds source needs the name of a data set: set config.data.name")
    # Imported here: it takes a second, which users of folders need not wait.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=str(Path(data_dir).expanduser()) if data_dir else None)
        if "image" not in builder.info.features:
            raise ValueError(f"the TFDS data set {name!r} has no feature 'image'")
        sources = {split: builder.as_data_source(split) for split in sorted(builder.info.splits)}
    except (tfds.core.registered.DatasetNotFoundError, NotImplementedError, AssertionError, OSError) as error:
        raise ValueError(
            f"the TFDS data set {name!r} cannot be read from {data_dir or 'the default data_dir'!r} "
            f"({str(error).splitlines()[0]}): prepare it with file_format='array_record', and set config.data.path"
        ) from error
    if not sources:
        raise ValueError(f"the TFDS data set {name!r} is not prepared: run its download_and_prepare first")
    names, loaders = [], []
    for split, source in sources.items():
        names += [f"{split}/{i:08d}" for i in range(len(source))]
        loaders += [lambda source=source, i=i: source[i]["image"] for i in range(len(source))]
    return names, loaders, f"{builder.info.full_name} {len(names)}"


def loader(loaders: list[Callable[[], np.ndarray]], size: int, fit: str) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 3); `fit` "whole" leaves the picture as is."""

    def load(index: int) -> np.ndarray:
        image = loaders[index]()
        image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        return image if fit == "whole" else image_files.fit_square(image, size, fit)

    return load
