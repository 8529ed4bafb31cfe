import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.yamlfile import parse_yaml, read_yaml


def test_scalars_are_those_of_yaml_1_2():
    text = "{on: pair, lr: 1e-4, b: yes, c: true, d: 1.5, e: ~, f: 0x10, h: 2020-01-01, g: .5, i: -3}"
    data, _ = parse_yaml(text, "x")
    assert data == {
        "on": "pair", "lr": 0.0001, "b": "yes", "c": True, "d": 1.5, "e": None, "f": 16, "h": "2020-01-01", "g": 0.5,
        "i": -3,
    }  # fmt: skip


def test_strings_stay_what_was_written():
    assert parse_yaml("a: 1513.10\nb: no\nc: ~\n", "x", strings=True)[0] == {"a": "1513.10", "b": "no", "c": "~"}


def test_every_value_has_its_line():
    _, lines = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - y\n", "x")
    assert lines["a", "b"] == 2 and lines["a", "c"] == 3 and lines["a", "c", 1] == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1", "x.yaml:1: anchors and aliases"),
        ("b: 1\na: *x", "x.yaml:2: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]", "x.yaml:1: the tag"),
        ("a: !custom 1", "x.yaml:1: the tag"),
        ("a: 1\nb: 2\na: 3", "x.yaml:3: a: is given twice"),
        ("a: [", "x.yaml:2: is not valid YAML"),
        ("\ta: 1", "x.yaml:1: is not valid YAML"),
        ("a: \x01", "x.yaml: is not valid YAML"),
        ("[1, 2]: 3", "x.yaml:1: a key must be a plain word"),
        ("a: " + "[" * 100_000, "x.yaml"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: is not valid YAML"),
    ],
)
def test_what_is_refused_says_where(text, said):
    with pytest.raises(RecipeError) as error:
        parse_yaml(text, "x.yaml")
    assert str(error.value).startswith(said)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin.yaml:2: is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    (tmp_path / "long.yaml").write_bytes(b"a: " + b"x" * (33 * 2**20))
    with pytest.raises(RecipeError, match="at most"):
        read_yaml(tmp_path / "long.yaml")


@given(st.text())
def test_any_text_is_data_or_a_recipe_error(text):
    try:
        parse_yaml(text, "x.yaml")
    except RecipeError as error:
        assert str(error).startswith("x.yaml")
