"""The TFDS source on a small real data set, built in the test without TensorFlow."""

import io

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import unet_cosine
from inpaint_jax.data import load_splits

COUNTS = {"train": 20, "test": 10}


class Blocks(tfds.core.GeneratorBasedBuilder):
    """Pictures of one colour, the position in the red channel."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(40, 48, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            file = io.BytesIO()  # an encoded file: TFDS needs TensorFlow to encode arrays
            Image.new("RGB", (48, 40), (i * 5, 100 if split == "test" else 0, 7)).save(file, "PNG")
            yield i, {"image": io.BytesIO(file.getvalue())}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    Blocks(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def config(data_dir: str):
    c = unet_cosine.get_config("tiny").data
    c.source, c.name, c.path, c.split_counts = "tfds", "blocks", data_dir, (20, 5, 5)
    return c


def colours(source) -> list[tuple[int, int, int]]:
    return [tuple(source[i][16, 16].tolist()) for i in range(len(source))]


def test_every_picture_is_in_one_split(config):
    result = load_splits(config, 32)
    assert [len(result[split]) for split in ("train", "val", "test")] == [20, 5, 5]
    seen = [colour for split in result.values() for colour in colours(split)]
    assert sorted(seen) == sorted([(i * 5, 0, 7) for i in range(20)] + [(i * 5, 100, 7) for i in range(10)])
    assert result["val"][0].shape == (32, 32, 3)
    again = load_splits(config, 32)
    assert {k: v.fingerprint for k, v in again.items()} == {k: v.fingerprint for k, v in result.items()}
    assert colours(again["train"]) == colours(result["train"])


def test_unknown_data_set_is_one_clear_sentence(config):
    config.name = "no_such_set"
    with pytest.raises(ValueError, match=r"no_such_set.*prepare it with file_format"):
        load_splits(config, 32)
