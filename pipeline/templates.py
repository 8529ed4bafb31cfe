"""Templates: Jinja in a sandbox, strict about undefined names.

A template sees the variables it is given and nothing else: no globals, no files, no includes, nothing random. Data
(facts, entities, documents) is only ever passed as a variable and never compiled, so `{{ ... }}` in it stays text.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import RecipeError, nearest, where

MAX_CHARACTERS = 2**20
"""Of a template; a prompt template has a few hundred."""

MAX_REPEAT = 100_000
"""The longest text or list that `*` may make in a template."""

_ELSEWHERE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class Template(NamedTuple):
    """A compiled template."""

    name: str  # its path, or <text>
    variables: dict[str, int]  # the names it needs -> the line on which each is first used, in the order of use
    fill: Callable[..., str]  # fill(**variables) -> text; see `fill` for errors that say where
    about: str | None  # NAME where the template begins with {# about: NAME #}


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a bound on `"x" * 10**9` and without `**`."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else abs(value) for value in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_REPEAT:
            raise TemplateError(f"{operator} makes something too large for a prompt")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    made = _Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals.clear()
    del made.filters["random"]  # the same recipe and seed must give the same text
    return made


def load(template: Path | str) -> Template:
    """Compile a template: a path, or the text itself.

    Raises RecipeError (FILE:LINE: what is wrong) for a file that cannot be read or is not UTF-8, for wrong syntax, and
    for include, import or extends.
    """
    name, source = ("<text>", template) if isinstance(template, str) else (str(template), _read(template))
    if len(source) > MAX_CHARACTERS:
        raise RecipeError(f"{name}: has {len(source):,} characters; a template has at most {MAX_CHARACTERS:,}.")
    environment = _environment()
    try:
        tree = environment.parse(source)
        for elsewhere in tree.find_all(_ELSEWHERE):
            raise RecipeError(
                f"{where(name, elsewhere.lineno)}: a template stands alone: it cannot include, import or extend. "
                "Write the text out."
            )
        undeclared = meta.find_undeclared_variables(tree)
        variables: dict[str, int] = {}
        for node in tree.find_all(nodes.Name):
            if node.name in undeclared:
                variables.setdefault(node.name, node.lineno)
        about = re.match(r"\{#-?\s*about:\s*(\w+)\s*-?#\}", source)
        return Template(name, variables, environment.from_string(source).render, about[1] if about else None)
    except TemplateSyntaxError as error:
        problem = (error.message or "wrong syntax").rstrip(".")
        raise RecipeError(f"{where(name, error.lineno)}: is not a valid template: {problem}.") from None
    except RecursionError:
        raise RecipeError(f"{name}: is nested too deeply.") from None


def fill(template: Template, **variables: Any) -> str:
    """The template's text with the variables put in, without blank space around it.

    Raises RecipeError (FILE:LINE: NAME) for a name that is not among the variables, with the nearest that is, and for
    whatever else goes wrong in it.
    """
    for name, line in template.variables.items():
        if name not in variables:
            place = where(template.name, line, name)
            raise RecipeError(f"{place}: there is no such variable here.{nearest(name, variables)}")
    try:
        return template.fill(**variables).strip()
    except UndefinedError as error:
        raise RecipeError(f"{where(template.name, _line_of(error))}: {error.message}.") from None
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        problem = str(error).rstrip(".")
        raise RecipeError(f"{where(template.name, _line_of(error))}: cannot be filled in: {problem}.") from None


def render(template: Path | str, **variables: Any) -> str:
    """`load` and `fill` in one: the text of a template (a path, or the template's own text)."""
    return fill(load(template), **variables)


def find_template(folder: Path, name: str) -> Path:
    """The template `name` in a domain's folder (prompts/DOMAIN).

    Raises RecipeError for a name that leads out of the folder, and for one that is not there, with the nearest that is.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", name):
        raise RecipeError(
            f"'{name}': is not the name of a template in {folder}. Use letters, digits, '.', '_', '-', '/'."
        )
    path = folder / name
    if not path.is_file():
        known = [file.relative_to(folder).as_posix() for file in folder.glob("*.jinja")]
        raise RecipeError(f"{folder}: there is no template '{name}' in it.{nearest(name, known)}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RecipeError(f"{path}: leads out of {folder}. Put the template itself there, not a link.")
    return path


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise RecipeError(f"{path}: is larger than a template of {MAX_CHARACTERS:,} characters can be.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text. Save the file as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None


def _line_of(error: BaseException) -> int | None:
    """The template's line on which an error arose: Jinja gives template code a file name of its own."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
