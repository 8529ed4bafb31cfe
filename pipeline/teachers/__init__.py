"""One file a provider, and for any teacher of a recipe: that file, whose service it is, its key, its folder."""

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from urllib.parse import urlsplit

from pipeline import paths
from pipeline.domain import read_domain
from pipeline.errors import UserError
from pipeline.facts import read_facts
from pipeline.recipe import Recipe, Teacher

HOSTED = {"openai": ("openai.com", "azure.com"), "anthropic": ("anthropic.com",)}
"""Whoever serves models under terms of his own -> where."""


def hosted(provider: str, urls: Sequence[str]) -> str | None:
    """Who serves a teacher of this provider at these base URLs (none: the provider's own), so that his terms hold:
    openai, anthropic, or None for anybody else. Servers with OpenAI's interface are many, so the address decides."""
    if not urls:
        return provider if provider in HOSTED else None
    hosts = [(urlsplit(url).hostname or "").rstrip(".") for url in urls]
    for owner, names in HOSTED.items():
        if any(host == name or host.endswith(f".{name}") for host in hosts for name in names):
            return owner
    return None


def provider_of(teacher: Teacher) -> ModuleType:
    """The provider's file. It has request, parse, SAMPLES_AT_ONCE and, for HTTP, wire, connect, limits (openai.py)."""
    return importlib.import_module(f"pipeline.teachers.{teacher.provider}")


def read_key(teacher: Teacher) -> str | None:
    """The teacher's key from its environment variable, None where it needs none. Raises UserError, without the key."""
    variable = teacher.api_key_env or (None if teacher.urls() else provider_of(teacher).KEY_ENV)
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise UserError(
            f"collect.teachers: {teacher.called}: the environment variable {variable} is not set. Put the key "
            f"for provider {teacher.provider} into it (export {variable}=...)."
        )
    if not all("!" <= character <= "~" for character in key):
        raise UserError(
            f"collect.teachers: {teacher.called}: {variable} has white space or unusual characters in it "
            "(a newline at its end?). Set it to the key alone."
        )
    return key


def local_teacher_folder(recipe: Recipe, teacher: Teacher) -> str:
    """What pipeline.teachers.local.load opens for a teacher of provider `local`: its folder or hub id. The embedded
    teacher is trained now if it is not in the cache."""
    if not teacher.embedded:
        return teacher.model
    from pipeline.teachers.embedded import embedded_teacher
    from pipeline.training import training_progress

    facts = read_facts(paths.domain_data_folder(recipe.domain) / "facts", teacher.embedded.relations)
    settings = teacher.embedded
    if settings.seed is None:
        settings = settings.model_copy(update={"seed": recipe.seed})
    if settings.lead_ins is None:
        domain_file = paths.prompts_folder(recipe.domain) / "domain.yaml"
        lead_ins = read_domain(domain_file).lead_ins if domain_file.is_file() else []
        settings = settings.model_copy(update={"lead_ins": lead_ins})
    with training_progress("train the embedded teacher") as log:
        return str(embedded_teacher(facts, settings, paths.cache_root(), log=log))
