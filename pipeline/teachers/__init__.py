"""One file a provider, and whose service a teacher is."""

from collections.abc import Sequence
from urllib.parse import urlsplit

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
