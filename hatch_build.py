"""Put prompts/ and the domains of data/ inside the wheel, where pipeline/paths.py looks for them outside a checkout.

A hook and not a `force-include` setting, because that would also copy them for an editable install, where they would
hide later edits.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling before a wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the shipped folders to a wheel, but not to an editable one."""
        if version == "editable":
            return
        root = Path(self.root)
        shipped = [
            root / "prompts",
            *(path for path in (root / "data").iterdir() if path.name not in ("runs", "cache")),
        ]
        for folder in shipped:
            build_data["force_include"][str(folder)] = f"pipeline/_shipped/{folder.relative_to(root)}"
