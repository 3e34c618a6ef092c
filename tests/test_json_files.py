"""JSON that is damaged, or made to do harm: one kind of error, and nothing taken for something else."""

import json

import pytest

from inpaint_jax import json_files

DEEP = json_files.DEEPEST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1} {', "Extra data"),
        (b'{"a": "\xff"}', "codec can't decode"),
        ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": 1, "b": 2, "a": 3}', "a name stands twice in one object"),
        (b'{"a": {"b": 2, "b": 2}}', "a name stands twice in one object"),
        (b'{"a": ' + b"7" * 400 + b"}", "a whole number has 400 digits"),
        (b'{"a": ' + b"7" * 5000 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"[" * (DEEP + 1) + b"]" * (DEEP + 1), "nested too deep"),
        (b'{"a":' * (DEEP + 1) + b"1" + b"}" * (DEEP + 1), "nested too deep"),
    ],
    ids=lambda value: str(value[:24]),
)
def test_what_is_wrong_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message) as error:
        json_files.parse(text)
    assert "\n" not in str(error.value)


def test_what_is_right_comes_as_it_is(tmp_path):
    value = {"a": [1, -2.5, None, True, 2**63, "é\u2028😀"], "b": {"c": {}}, "d": [[[]]] * 100, "e": "[" * 100}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert json_files.read(tmp_path / "x.json") == value
    assert json_files.parse("[" * DEEP + "]" * DEEP) is not None
    assert json_files.digest({"a": 1, "b": [2]}) == json_files.digest({"b": [2], "a": 1})
    assert json_files.digest({"a": 1}) != json_files.digest({"a": 1.0})
    with pytest.raises(FileNotFoundError):
        json_files.read(tmp_path / "absent.json")
