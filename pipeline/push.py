"""`seqkd push`: the student, and its training data if asked for, to the Hugging Face hub.

What is sent are the files of a complete stage and a card, made for the name that it gets there (pipeline/cards.py). The
token is huggingface_hub's own (HF_TOKEN, or that of `hf auth login`); it is never an argument.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import artifacts, cards, flow
from pipeline.errors import SeqkdError, UserError
from pipeline.progress import say
from pipeline.runs import Run

SENT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Of a student: weights, configuration and tokenizer. Nothing that runs when it is opened: no pickle, no code."""


class Upload(NamedTuple):
    """One repository of the hub and what is to be in it."""

    repo: str
    kind: Literal["model", "dataset"]
    card: str  # its README.md
    files: dict[str, Path]  # name there -> file here, all the others
    left: list[str]  # files that are not sent


class HubError(SeqkdError):
    """The hub refused something, or cannot be reached."""


def push(
    run: Run,
    repo: str,
    *,
    data_repo: str | None = None,
    card: Path | None = None,
    public: bool = False,
    yes: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Upload a run's student as `repo` (OWNER/NAME), and its data as `data_repo`, and return their addresses.

    card: a file to send as the student's README.md instead of the one that is made. public: for everybody to see. yes:
    the teachers' terms allow it. dry_run: print what would be sent, and send nothing.

    Raises UserError for what is wrong here (a stage that is not complete, no token, terms that were not accepted) and
    HubError for what the hub says.
    """
    with flow.lock(run.path):
        uploads = [student_upload(run.path, repo, data_repo, card)]
        if data_repo:
            uploads.append(data_upload(run.path, data_repo))
        if dry_run:
            for upload in uploads:
                print("\n".join(listing(upload, public)), upload.card, sep="\n\n")
            return []
        check_terms(run.path, public, yes)
        for upload in uploads:
            say("\n".join(listing(upload, public)))
        return [send(upload, public) for upload in uploads]


def student_upload(run: Path, repo: str, data_repo: str | None, card: Path | None) -> Upload:
    """The student and its card, with the scores if evaluate has examined this very student."""
    for name in (repo, data_repo or repo):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
            raise UserError(f"{name}: a repository of the hub is called OWNER/NAME (letters, digits, '.', '_', '-').")
    for stage in ("assemble", "train"):
        check_current(run, stage)
    check_unchanged(run, "train", "student")
    text = read_card(card) if card else cards.model_card(cards.story(run), scores(run), repo=repo, data_repo=data_repo)
    folder = run / "train" / "student"
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop("README.md", None)
    files = {name: path for name, path in found.items() if path.suffix in SENT}
    return Upload(repo, "model", text, files, [name for name in found if name not in files])


def data_upload(run: Path, repo: str) -> Upload:
    """The training data, its validation part and their card."""
    folder = run / "assemble"
    for name in ("train.parquet", "validation.parquet"):
        check_unchanged(run, "assemble", name)
    example = next(artifacts.read_rows(folder / "train.parquet", ["prompt", "completion"]))
    tables = [folder / name for name in ("train.parquet", "validation.parquet")]
    files = {table.name: table for table in tables if artifacts.count_rows(table)}
    text = cards.data_card(cards.story(run), example=example, repo=repo)
    return Upload(repo, "dataset", text, files, [])


def scores(run: Path) -> dict[str, Any] | None:
    """evaluate's scores, None if it has not examined this student."""
    if not flow.read_manifest(run, "evaluate"):
        say("evaluate has not run: the card has no scores")
    elif changed(run, "evaluate"):
        say("evaluate examined another student than the run has now: the card has no scores")
    else:
        return Run(run).scores_json
    return None


def check_current(run: Path, stage: str) -> None:
    """Raises UserError if a stage is not complete, or was made from something else than the run has now."""
    if not flow.read_manifest(run, stage):
        raise UserError(f"run {run.name}: {stage} is not complete, so there is nothing to push. `seqkd run` makes it.")
    before = changed(run, stage)
    if before:
        raise UserError(
            f"run {run.name}: {before} has been made anew since {stage} read it, so no card could be true. `seqkd run` "
            "makes the stages after it again."
        )


def check_unchanged(run: Path, stage: str, name: str) -> None:
    """Raises UserError if a file or folder of a complete stage is not what the stage wrote: no card of it is true."""
    manifest = flow.read_manifest(run, stage)
    assert manifest
    flow.check_unchanged(run / stage / name, stage, manifest["files"][name]["sha256"])


def changed(run: Path, stage: str) -> str | None:
    """A stage whose output is another one now than when `stage` read it, if there is one."""
    manifest = flow.read_manifest(run, stage)
    assert manifest
    for name, digest in manifest["basis"]["inputs"].items():
        writer, _, file = name.partition("/")
        if not file or writer not in flow.STAGES:
            continue
        files = (flow.read_manifest(run, writer) or {"files": {}})["files"]
        now = files.get(file) or files.get(f"{file}.parquet")
        if not now or now["sha256"] != digest:
            return writer
    return None


def read_card(path: Path) -> str:
    """A card that the user wrote. Raises UserError if it cannot be one."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        text = path.read_text(encoding="utf-8")
        ModelCard(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--card {path}: cannot be read as a card: {reason}.") from None
    return text


def check_terms(run: Path, public: bool, yes: bool) -> None:
    """Say what the teachers' terms are; to publish for everybody, ask for a yes. Raises UserError without one."""
    sections = cards.story(run).sections
    terms = cards.terms_of(one for _, one in cards.learned_from(sections))
    for text, link in terms.values():
        say(f"{text}: {link}")
    if not terms or not public or yes:
        return
    if not sys.stdin.isatty():
        raise UserError(
            "nothing was sent. Add --yes if these terms allow you to publish what was made with the output."
        )
    say("Do they allow you to publish what was made with the output? Type yes to go on.")
    if sys.stdin.readline().strip().lower() != "yes":
        raise UserError("nothing was sent.")


def listing(upload: Upload, public: bool) -> list[str]:
    """What is sent where, in lines."""
    sizes = {"README.md": len(upload.card.encode())} | {
        name: file.stat().st_size for name, file in upload.files.items()
    }
    seen = "public" if public else "private"
    head = f"{upload.repo} ({upload.kind}, {seen}): {len(sizes)} files, {sum(sizes.values()):,} bytes"
    lines = [f"  {size:>15,}  {name}" for name, size in sorted(sizes.items())]
    return [head, *lines, *([f"  not sent: {', '.join(upload.left)}"] if upload.left else [])]


def send(upload: Upload, public: bool) -> str:
    """Make the repository if there is none and put all files into it in one commit. Returns its address.

    Raises UserError if there is no token, or if it exists and anybody could see what was meant to be private.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    repo, kind = upload.repo, upload.kind
    with hub_errors(upload):
        if not get_token():
            raise UserError("the hub needs a token to write: set HF_TOKEN, or log in with `hf auth login`.")
        api = HfApi(library_name="seqkd")
        address = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        if not api.repo_info(repo, repo_type=kind).private and not public:
            raise UserError(
                f"{repo} exists already and is public, so nothing was sent. Say --public, make it private on the hub, "
                "or choose another name."
            )
        operations = [CommitOperationAdd("README.md", upload.card.encode())]
        operations += [CommitOperationAdd(name, file) for name, file in sorted(upload.files.items())]
        what = "Student" if kind == "model" else "Training data"
        api.create_commit(repo, operations, commit_message=f"{what} made with seqkd", repo_type=kind)
    return str(address)


@contextmanager
def hub_errors(upload: Upload) -> Iterator[None]:
    """What the hub and its client raise, each as one sentence."""
    import httpx2
    from huggingface_hub import errors

    name = f"{upload.repo} ({upload.kind})"
    try:
        yield
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.HFValidationError, ValueError, RuntimeError) as error:
        # An upload that fails in a thread is a RuntimeError caused by what really happened.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise HubError(f"{name}: {_problem(cause, upload)}") from None


def _problem(error: BaseException, upload: Upload) -> str:
    import httpx2
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing was sent. Unset it to push."
    if isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, _first_line(error.server_message)
        owner = upload.repo.split("/")[0]
        known = {
            401: "the hub does not accept the token. Set HF_TOKEN to a valid one, or log in with `hf auth login`",
            402: "the hub asks for a payment",
            403: f"the token may not write there. It needs the right to write to the repositories of {owner}",
            404: f"there is no such {upload.kind}, or the token may not see it. Is the name that of a repository of "
            "another type?",
            409: "the hub says that it conflicts with what is there",
            413: "the hub finds it too large",
            429: "the hub asks to wait; try again later",
        }
        return f"{known.get(status, f'the hub answered {status}')}{f' ({said})' if said else ''}."
    if isinstance(error, httpx2.HTTPError):
        return f"{constants.ENDPOINT} cannot be reached ({_first_line(str(error)) or type(error).__name__})."
    return f"the upload failed: {_first_line(str(error)) or type(error).__name__}."


def _first_line(text: str | None) -> str:
    return next((line.strip().rstrip(".") for line in (text or "").splitlines() if line.strip()), "")
