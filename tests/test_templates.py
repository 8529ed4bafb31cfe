"""Templates: strict, sandboxed, and with errors that say where."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.templates import fill, find_template, load, render


def test_fills_in_variables_and_drops_blank_space_around(tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_text("\n{% if style %}\n{{ style }}\n{% endif %}\nHello {{ name }}!\n\n")
    assert render(path, name="Ada", style="Short.") == "Short.\nHello Ada!"


@given(st.text())
def test_data_is_never_a_template(text: str) -> None:
    assert fill(load("<{{ x }}>"), x=text) == f"<{text}>".strip()


@pytest.mark.parametrize("data", ["{{ 7 * 7 }}", "{% for i in x %}", "{# gone #}", "{{ x.__class__ }}", "\x00\ud800"])
def test_template_syntax_in_data_stays_text(data: str) -> None:
    assert render("{{ x }}", x=f"({data})") == f"({data})"


def test_undefined_name_is_an_error_with_line_and_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_text("One\n\n{{ planett }}\n")
    with pytest.raises(RecipeError, match=rf"^{path}:3: planett: .*Did you mean 'planet'\?"):
        render(path, planet="Vulcan")


def test_about_names_what_a_template_is_about() -> None:
    assert load("{# about: theme #}\n{{ officer }} on {{ theme }}").about == "theme"
    assert load("{# a remark #}{{ officer }}").about is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ name", ":2: is not a valid template"),
        ("{% include '/etc/passwd' %}", ":1: a template stands alone"),
        ("\n{% import 'x' as y %}", ":2: a template stands alone"),
        ("{% extends 'x' %}", ":1: a template stands alone"),
        ("a\n\n{{ name.missing }}", ":3: .*has no attribute 'missing'"),
        ("{{ name.__class__.__mro__ }}", ":1: cannot be filled in: .*unsafe"),
        ("{{ '{0.__class__}'.format(name) }}", ":1: cannot be filled in: .*unsafe"),
        ("{{ name * 10 ** 9 }}", ":1: cannot be filled in: .*too large"),
        ("{{ name * 999999 }}", ":1: cannot be filled in: .*too large"),
        ("{{ range(3) }}", ":1: range: there is no such variable"),
        ("{{ name | random }}", ":1: is not a valid template"),
        ("{{ 1 / 0 }}", ":1: cannot be filled in: division by zero"),
        ("{{ " + "(" * 5000 + "}}", "nested too deeply"),
        ("x" * 2_000_000, "has 2,000,000 characters"),
    ],
)
def test_hostile_and_broken_templates_are_refused(source: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        render(source, name="n")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "a.jinja"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load(bad)
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path / "none.jinja")


def test_find_template_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "teacher_system.jinja").write_text("x")
    (tmp_path / "secret.jinja").write_text("s")
    (folder / "link.jinja").symlink_to(tmp_path / "secret.jinja")
    assert find_template(folder, "teacher_system.jinja") == folder / "teacher_system.jinja"
    for name in ("../secret.jinja", "/etc/passwd", "a/../../secret.jinja", "", "a\x00b", "link.jinja"):
        with pytest.raises(RecipeError):
            find_template(folder, name)
    with pytest.raises(RecipeError, match=r"Did you mean 'teacher_system.jinja'\?"):
        find_template(folder, "teacher_sytem.jinja")
