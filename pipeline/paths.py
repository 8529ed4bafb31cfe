"""Where things lie: the user's folders first, then what was shipped with the package.

./data/runs, ./data/cache     made here (or under --data DIR, or SEQKD_DATA)
./prompts/DOMAIN              a user's own templates
./data/DOMAIN                 a user's own facts and held-out questions
"""

import os
from pathlib import Path

from pipeline.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent
# In a checkout prompts/ and data/ lie beside the package; a wheel carries copies of them inside it.
SHIPPED = PACKAGE / "_shipped" if (PACKAGE / "_shipped").is_dir() else PACKAGE.parent
RECIPES = PACKAGE / "recipes"


def data_root() -> Path:
    """The folder that holds runs and caches: SEQKD_DATA (set by --data), else ./data."""
    return Path(os.environ.get("SEQKD_DATA") or "data")


def runs_root() -> Path:
    """The folder of all runs."""
    return data_root() / "runs"


def cache_root() -> Path:
    """The folder of what can be made again: embedded teachers and the response store."""
    return data_root() / "cache"


def _find(kind: str, name: str) -> Path | None:
    for root in (Path.cwd(), SHIPPED):
        if (root / kind / name).is_dir():
            return root / kind / name
    return None


def _domain_folder(kind: str, domain: str) -> Path:
    found = _find(kind, domain)
    if found:
        return found
    known = {
        folder.name
        for root in (Path.cwd(), SHIPPED)
        if (root / kind).is_dir()
        for folder in (root / kind).iterdir()
        if folder.is_dir() and folder.name not in ("runs", "cache") and not folder.name.startswith((".", "_"))
    }
    raise UserError(
        f"no folder {kind}/{domain} in {Path.cwd()} nor among those shipped with seqkd."
        f"{nearest(domain, known)} Make {kind}/{domain}, or name another `domain:` in the recipe."
    )


def prompts_folder(domain: str) -> Path:
    """prompts/DOMAIN: ./prompts/DOMAIN if there is one, else the shipped one. Raises UserError if there is neither."""
    return _domain_folder("prompts", domain)


def template_of(domain: str, name: str) -> Path:
    """A template or folder of templates, prompts/DOMAIN/NAME or else the one for any domain, prompts/_any/NAME; in both
    a user's own comes first. The domain needs no folder of its own."""
    places = [root / "prompts" / folder / name for folder in (domain, "_any") for root in (Path.cwd(), SHIPPED)]
    return next((place for place in places if place.exists()), places[-1])


def domain_data_folder(domain: str) -> Path:
    """data/DOMAIN: ./data/DOMAIN if there is one, else the shipped one. Raises UserError if there is neither."""
    return _domain_folder("data", domain)


def find_recipe(name: str) -> Path:
    """A recipe by path (anything with a slash or .yaml) or by the name of one that ships with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(
            f"no recipe file {name}. Give the path of a YAML file or one of: {', '.join(shipped_recipes())}."
        )
    if (RECIPES / f"{name}.yaml").is_file():
        return RECIPES / f"{name}.yaml"
    if Path(f"{name}.yaml").is_file():
        raise UserError(f"no recipe named '{name}' ships with seqkd. Yours is {name}.yaml: give it with its ending.")
    raise UserError(f"no recipe named '{name}'.{nearest(name, shipped_recipes())} A path to a .yaml file works too.")


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))
