"""A user's own files as passages, for the method documents of the stage generate.

    .txt .md      the text, UTF-8
    .html .htm    what a reader sees of the page, without scripts, navigation and footers
    .pdf          its text, page by page; a scan without a text layer has none
    .jsonl        one text a row: {"text": "..."} (or "content", or just a string)

Nothing is believed: bytes that are no text, an encrypted or broken PDF, a line of a hundred megabytes end in an error
that names the file. What is read is only ever data; it is put into templates as a variable.
"""

import glob
import heapq
import importlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import RecipeError, UserError, where
from pipeline.progress import say
from pipeline.records import Message, make_id
from pipeline.rowfile import read_objects
from pipeline.templates import Template, fill

SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", ".jsonl")

MAX_BYTES = 64 * 2**20
"""Of a file, and of the text that a PDF unfolds to; .jsonl is read row by row and has no such bound."""

MIN_WORDS = 8
"""Words of a passage: a shorter one is a heading or a page number, and there is nothing to ask about it."""

BLOCK = 8
"""Passages' worth of text that is split at once: the splitter's time grows faster than its text."""

_UNSEEN = ["script", "style", "noscript", "template", "svg", "nav", "footer", "form", "iframe", "button", "select"]
_BREAKS = (
    "address, article, aside, blockquote, br, dd, div, dl, dt, figcaption, figure, h1, h2, h3, h4, h5, h6, header, hr, "
    "li, main, ol, p, pre, section, table, td, th, title, tr, ul"
)


class Passage(NamedTuple):
    """A part of a document."""

    text: str
    source: str  # the file's name


def places(given: Sequence[Path]) -> list[Path]:
    """The files and folders that a recipe's paths and globs name, in the order of the recipe.

    Raises UserError for a path or glob that leads to nothing, and for what is neither a file nor a folder.
    """
    found: dict[Path, None] = {}
    for path in given:
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not matches:
            raise UserError(f"generate.documents.files: there is no file or folder {path}. Mend the path or the glob.")
        for match in matches:
            if not match.is_file() and not match.is_dir():
                raise UserError(f"generate.documents.files: {match} is neither a file nor a folder.")
            found[match] = None
    return list(found)


def passages(found: Sequence[Path], characters: int, most: int, seed: int, left_out: Counter[str]) -> list[Passage]:
    """At most `most` different passages of `characters` or less, drawn from all documents alike and in an order that
    the seed decides. `left_out` counts passages that are too short and documents that have no text.

    Raises RecipeError (FILE: or FILE:LINE: what is wrong) for a document that cannot be read, UserError if there is
    none, or not one passage in them.
    """
    files = _files(found)
    seen: set[bytes] = set()

    def numbered() -> Iterator[tuple[bytes, Passage]]:
        for file in files:
            before = len(seen)
            for text in _split(file, characters):
                name = blake2b(f"{seed} {text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if len(text.split()) < MIN_WORDS:
                    left_out["short_passage"] += 1
                elif name not in seen:
                    seen.add(name)
                    yield name, Passage(text, _printable(file.name))
            if len(seen) == before:
                left_out["document_without_text"] += 1
                say(f"  {_printable(str(file))}: has no text of its own to ask about")

    # The smallest of some hashes are a fair sample, the same whatever the order of the files; no more are in memory.
    drawn = [passage for _, passage in heapq.nsmallest(most, numbered(), key=lambda pair: pair[0])]
    if not drawn:
        raise UserError(f"generate.documents: the {len(files):,} files have no passage of at least {MIN_WORDS} words.")
    return drawn


def shown(template: Template, context: str, question: str, open_book: bool) -> list[Message]:
    """A question together with its passage, as one user turn. `open_book`: whoever asks sees the passage too. The
    delimiter holds a hash of the passage, so that nothing in it can close it."""
    text = fill(template, tag=tag_of(context), passage=context, question=question, open_book=open_book)
    return [{"role": "user", "content": text}]


def tag_of(passage: str) -> str:
    """What marks the beginning and the end of a passage in a prompt."""
    return make_id("passage", passage)[:8]


def _files(found: Sequence[Path]) -> list[Path]:
    """The files themselves: of a folder all that can be read, but for hidden ones."""
    files: dict[Path, None] = {}
    for path in found:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path)]
            read = [file for file in inside if file.suffix.lower() in SUFFIXES]
            if len(read) < len(inside):
                say(f"  {path}: {len(inside) - len(read):,} files are not {', '.join(SUFFIXES)} and are not read")
            files |= dict.fromkeys(read)
        elif path.suffix.lower() not in SUFFIXES:
            raise RecipeError(f"{path}: is not one of {', '.join(SUFFIXES)}. Convert it, or leave it out.")
        else:
            files[path] = None
    if not files:
        raise UserError(f"generate.documents.files: there are no {', '.join(SUFFIXES)} files in what they name.")
    return list(files)


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def _printable(name: str) -> str:
    """A file's name without what a terminal would obey and UTF-8 cannot hold."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _split(file: Path, characters: int) -> Iterator[str]:
    """The passages of a file, in their order."""
    library = _library("semantic_text_splitter")
    kind = library.MarkdownSplitter if file.suffix.lower() == ".md" else library.TextSplitter
    splitter = kind(characters)
    for text in _texts(file):
        for block in _blocks(text, BLOCK * characters):
            yield from splitter.chunks(block)


def _blocks(text: str, size: int) -> Iterator[str]:
    """A text cut where a paragraph, a line or a word ends, into parts of at most `size` characters."""
    start = 0
    while len(text) - start > size:
        ends = (text.rfind(mark, start + size // 2, start + size) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > 0), start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def _texts(file: Path) -> Iterator[str]:
    """The texts of a file: one, or one a page or row."""
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        yield from _rows(file)
    elif suffix == ".pdf":
        yield from _pages(file)
    elif suffix in (".html", ".htm"):
        yield visible(_decoded(file))
    else:
        yield _decoded(file)


def _decoded(file: Path) -> str:
    _check_size(file)
    raw = file.read_bytes()
    if b"\0" in raw:
        raise RecipeError(f"{file}: is not text: it has zero bytes in it. Leave it out, or mend its suffix.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{where(file, line)}: is not UTF-8 text. Save the file as UTF-8, or leave it out.") from None


def _check_size(file: Path) -> None:
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise RecipeError(
            f"{file}: has {size:,} bytes; a document has at most {MAX_BYTES:,}. Split it, or leave it out."
        )


def visible(html: str) -> str:
    """What a reader sees of a page: a line for each paragraph, item and cell, with no markup in it."""
    parser = _library("selectolax.lexbor").LexborHTMLParser
    mark = "\x1e"
    page = parser(html.replace(mark, " "))
    page.strip_tags(_UNSEEN)
    for node in page.css(_BREAKS):
        node.insert_before(mark)
        node.insert_after(mark)
    text = page.root.text() if page.root else ""
    lines = (" ".join(line.split()) for line in text.split(mark))
    return "\n".join(line for line in lines if line)


def _pages(file: Path) -> Iterator[str]:
    _check_size(file)
    pypdf = _library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of what every second PDF does wrong
    size = 0
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise RecipeError(f"{file}: is encrypted. Save it without a password, or leave it out.")
        for page in reader.pages:
            text: str = page.extract_text()
            size += len(text)
            if size > MAX_BYTES:
                raise RecipeError(f"{file}: unfolds to more than {MAX_BYTES:,} characters. Leave it out.")
            yield text
    except RecipeError:
        raise
    except pypdf.errors.DependencyError:
        raise RecipeError(f"{file}: is encrypted. Save it without a password, or leave it out.") from None
    except Exception as error:  # whatever a broken file leads the parser to
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RecipeError(f"{file}: cannot be read as a PDF: {said}. Save it anew, or leave it out.") from None


def _rows(file: Path) -> Iterator[str]:
    for line, row in read_objects(file):
        text = row
        if isinstance(row, dict):
            text = next((row[name] for name in ("text", "content") if row.get(name) is not None), None)
        if not isinstance(text, str):
            raise RecipeError(f'{where(file, line)}: expected an object such as {{"text": "..."}}.')
        yield text


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(f"generate.documents needs {package}. Run: pip install 'seqkd[documents]'") from None
