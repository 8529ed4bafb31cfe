"""Which step earned what: the student trained again without each step, over several seeds, in one table.

    untrained     the student before training
    raw           on every answer: no filter, no deduplication, all samples of a prompt
    + filter      on what filter keeps
    + dedupe      and dedupe keeps
    + best-of     and assemble.best_of leaves: the recipe as it is
    without       the recipe as it is but for its filter, and but for its deduplication
    random        after each step: on as many unfiltered answers, drawn at random
    METHOD        the recipe's rows, but another train.method

Each variant is an ordinary run, data/runs/NAME-VARIANT-SEED, made by the ordinary flow with a few changes of the
recipe. It begins with a link to the answers of the run NAME, and a stage that another variant has from the same inputs
is linked too, so nothing is asked, filtered or trained twice. Each student answers the held-out questions once,
greedily; its answers are a table in data/runs/NAME/ablation, named by all that determines them. A killed ablation
therefore goes on with the same command, and comes to the same table.

Students are trained and examined side by side, each in a process with one thread. Small models gain little from a
second thread, and the number of threads changes how sums are rounded: with one everywhere, the table does not depend
on the number of cores. For the same reason the students that the run NAME itself has trained are not taken.

Only the student's seed changes between seeds (train.seed: random weights, order of rows, dropout); the data are the
same. Intervals are 95% percentile bootstrap over questions, those about one fact together, and over seeds, all variants
in the same draws: differences are paired. With few seeds such an interval is somewhat too narrow; each seed's accuracy
is in ablation.json.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import artifacts, flow, metrics, questions, report
from pipeline.errors import SeqkdError, UserError, nearest
from pipeline.progress import progress, say
from pipeline.questions import Question
from pipeline.recipe import Dedupe, Recipe, load_recipe
from pipeline.records import PREDICTIONS, Message, make_id
from pipeline.stages import collect, evaluate, train
from pipeline.teachers import local, local_teacher_folder
from pipeline.teachers.local import Loaded

ROWS = ("filter", "dedupe", "assemble")
"""What each variant makes for itself before it is trained, or links; generate and collect are always the run's."""

STEPS = {"raw": "raw", "filter": "+ filter", "dedupe": "+ dedupe", "best_of": "+ best-of"}

WITHOUT = {"no_filter": "without filter", "no_dedupe": "without dedupe"}
"""The recipe but for one step. Without best-of it is the row `+ dedupe`."""

UNLIMITED = 1_000_000
"""As assemble.best_of: all rows of a prompt."""


class Variant(NamedTuple):
    """A run of the ablation."""

    name: str  # of STEPS, of WITHOUT, or a method
    seed: int
    run: Path
    recipe: Recipe
    before: Path | None  # the run whose student it goes on from


class Student(NamedTuple):
    """A row of the table: what it is, and where its answers are, a table for each seed."""

    name: str
    label: str
    rows: int | None  # that it was trained on
    answers: list[Path]
    before: str | None  # name of the row that it is compared with: one step before, or the recipe as it is
    random: str | None  # name of the row on as many random answers
    identity: str | None = None  # as of report.identity; None for those that no recipe trains as it is


def ablate(
    recipe: Path, run: Path, *, overrides: Sequence[str] = (), seeds: int = 3, methods: Sequence[str] = (),
    force: bool = False, jobs: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and examine every variant of a recipe and write ablation.json and ablation.md into the run's folder.

    run: data/runs/NAME. seeds: how many, from the recipe's on. methods: as ablate.methods, which it replaces; the
    first trains the steps. jobs: students at a time; None: one a core, or one where there is a GPU. The processes are
    spawned: a script that calls this needs the usual `if __name__ == "__main__":`. Returns what ablation.json has:
    {"seeds", "questions", "teacher": accuracy, "variants": [{"name", "label", "rows", "accuracy", "accuracy_ci",
    "by_seed", "retention", "over_before", "over_random", ..._ci}]}. Raises SeqkdError.
    """
    base = load_recipe(recipe, list(overrides))
    names = list(dict.fromkeys(methods or base.ablate.methods or [base.train.method]))
    for name in names:
        if name not in train.METHODS:
            raise UserError(f"--methods {name}: there is no such train.method.{nearest(name, train.METHODS)}")
    asked = sorted(questions.held_out(base), key=lambda question: question.id)
    if not any(question.answers for question in asked):
        raise UserError(
            "an ablation compares accuracies, and no held-out question has an accepted answer. Give "
            'evaluate.questions a file with {"prompt": ..., "answer": ...} lines.'
        )
    # All recipes first: a mistake in one of them is told before an hour of training, not after.
    numbers = [train.student_seed(base) + number for number in range(seeds)]
    variants = [
        Variant(
            name,
            seed,
            _folder(run, name, seed),
            load_recipe(recipe, [*overrides, *changes]),
            _folder(run, "best_of", seed) if name == "on_policy" else None,
        )
        for seed in numbers
        for name, changes in _changes(base, names, seed, run).items()
    ]
    with flow.lock(run), flow.storage_errors():
        for stage in ("generate", "collect"):
            flow.execute(stage, base, run, force=force)
        out = run / "ablation"
        out.mkdir(exist_ok=True)
        teacher = _teacher(base, asked, out)
        for number, variant in enumerate(variants):
            _make_rows(variant, [run, *(before.run for before in variants[:number])], force)
        _train_all(variants, asked, out, jobs or _jobs(), force)
        found = dict[str, list[Path]]()
        for variant in variants:
            for name, answers in _examine(variant, asked, out).items():
                found.setdefault(name, []).append(answers)
        students = _students(names, variants, found)
        scores = score(asked, students, teacher, base.evaluate.bootstrap, base.seed)
        scores["seeds"] = numbers
        # Renamed into place: the report of a run reads it.
        artifacts.write_json(run / "ablation.partial", scores)
        (run / "ablation.partial").rename(run / "ablation.json")
        artifacts.write_text(run / "ablation.md", table(scores))
    return scores


def _changes(base: Recipe, methods: Sequence[str], seed: int, run: Path) -> dict[str, list[str]]:
    """Variant -> what --set would say to make it from the recipe."""
    common = [f"train.seed={seed}"]
    special = {str(method): given for method, given in base.ablate.changes.items()}
    own = [] if methods[0] == base.train.method else [f"train.method={methods[0]}"]
    every = f"assemble.best_of={UNLIMITED}"
    off = {"exact": "false", "near": "null", "semantic": "null"}
    undeduped = [f"dedupe.{name}={value}" for name, value in off.items() if name in Dedupe.model_fields]
    step = [*common, *own, *special.get(methods[0], []), "train.baselines=[random_subset]"]
    found = {
        "raw": [*step, "train.baselines=[]", "filter.enabled=false", *undeduped, every],
        "filter": [*step, *undeduped, every],
        "dedupe": [*step, every],
        "best_of": step,
        "no_filter": [*step, "filter.enabled=false"],
        "no_dedupe": [*step, *undeduped],
    }
    for method in methods[1:]:
        found[method] = [*common, f"train.method={method}", "train.baselines=[]"]
        if method == "on_policy":
            # A student that cannot answer yet has nothing to be scored: as in the paper, it begins where the first
            # method ended.
            student = _folder(run, "best_of", seed) / "train" / "student"
            found[method] += [f"train.student={json.dumps(str(student))}", "train.tokenizer=null"]
        found[method] += special.get(method, [])
    return found


def _folder(run: Path, name: str, seed: int) -> Path:
    return run.with_name(f"{run.name}-{name}-{seed}")


def _make_rows(variant: Variant, donors: Sequence[Path], force: bool) -> None:
    """The stages of a variant before the training, linked where a donor has them."""
    say(f"{variant.run.name}:")
    with flow.lock(variant.run), flow.storage_errors():
        for stage in ("generate", "collect"):
            flow.link(donors[0], stage, variant.run)
        for stage in ROWS:
            flow.link_same(donors, stage, variant.recipe, variant.run)
            flow.execute(stage, variant.recipe, variant.run, force=force)


def _train_all(variants: Sequence[Variant], asked: Sequence[Question], out: Path, jobs: int, force: bool) -> None:
    """Train and examine all students, `jobs` at a time."""
    for path in out.glob("*.partial"):
        path.unlink()  # of one that was killed
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that has used OpenMP hangs
    waiting, done = list(variants), list[Path]()
    running: dict[Future[None], tuple[Variant, str]] = {}
    with progress("students", len(variants), "students") as advance:
        with ProcessPoolExecutor(min(jobs, len(variants)), context, _begin) as pool, _stopped_on_error():
            while waiting or running:
                for variant in list(waiting):
                    if variant.before and variant.before not in done:
                        continue
                    key = flow.fingerprint("train", variant.recipe, variant.run)
                    if key in (other for _, other in running.values()):
                        continue  # the same student: linked when it is there
                    running[pool.submit(_train, variant, list(done), asked, out, force)] = variant, key
                    waiting.remove(variant)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    variant, _ = running.pop(future)
                    _result(future, variant)
                    done.append(variant.run)
                    advance(1)


def _jobs() -> int:
    """How many students are trained at a time."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """What a process that trains students does first."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it through its parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However the parent went (kill -9, a SIGTERM of a scheduler): nobody would read what this process makes."""
    parent = multiprocessing.parent_process()
    assert parent
    connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _stopped_on_error() -> Iterator[None]:
    """If one student fails, or on Ctrl-C, the others are not waited for: the same command goes on with them."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _result(done: "Future[None]", variant: Variant) -> None:
    log = variant.run / "ablation.log"
    try:
        done.result()
    except SeqkdError as error:
        raise type(error)(f"{variant.run.name}: {error}") from error
    except BrokenProcessPool as error:
        raise SeqkdError(
            f"{variant.run.name}: its training was killed; if memory ran out, give a smaller --jobs. See {log}. "
            "The same command goes on from here."
        ) from error


def _train(variant: Variant, donors: Sequence[Path], asked: Sequence[Question], out: Path, force: bool) -> None:
    """Train a variant's students and have them examined: the work of one of several processes. What it says goes to
    ablation.log in the variant's folder, for the lines of several would be mixed."""
    with (variant.run / "ablation.log").open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        with flow.lock(variant.run), flow.storage_errors():
            flow.link_same(donors, "train", variant.recipe, variant.run)
            flow.execute("train", variant.recipe, variant.run, force=force)
            _examine(variant, asked, out)


def _examine(variant: Variant, asked: Sequence[Question], out: Path) -> dict[str, Path]:
    """The answers of a variant's students: {row of the table: its answers}; with raw those before training too."""
    config = variant.recipe.train
    manifest = flow.read_manifest(variant.run, "train")
    assert manifest
    folder = variant.run / "train"
    trust = config.trust_remote_code
    found = {}

    def trained(path: Path) -> Callable[[], Loaded]:
        return lambda: local.load(path, trust_remote_code=trust)

    if variant.name == "raw":
        # A student with random weights differs with the seed, one from a folder or the hub does not.
        who: list[Any] = ["untrained", config.student]
        if not isinstance(config.student, str):
            who += [variant.seed, str(train.tokenizer_folder(variant.recipe))]
        found["untrained"] = _answers(who, lambda: _untrained(variant.recipe), variant.recipe, asked, out)
    digests = manifest["files"]
    who = ["student", digests["student"]["sha256"]]
    found[variant.name] = _answers(who, trained(folder / "student"), variant.recipe, asked, out)
    for baseline in config.baselines:
        who = [baseline, digests["baselines"]["sha256"]]
        path = folder / "baselines" / baseline
        found[f"{variant.name} random"] = _answers(who, trained(path), variant.recipe, asked, out)
    return found


def _untrained(recipe: Recipe) -> Loaded:
    model, tokenizer = train.open_student(recipe)
    return local.prepare(model, tokenizer, "")


def _answers(
    who: Sequence[Any], load: Callable[[], Loaded], recipe: Recipe, asked: Sequence[Question], out: Path
) -> Path:
    """The table of a model's answers, made if it is not there. `who`: what determines the model."""
    path = _place(who, recipe, asked, out)
    if not path.is_file():
        chats: evaluate.Chats = {"student": [list(question.messages) for question in asked]}
        answers = evaluate.ask({"student": load()}, chats, recipe.evaluate)["student"]
        _keep(path, evaluate.mark("student", asked, answers, [(0.0, 0)] * len(asked)))
    return path


def _place(who: Sequence[Any], recipe: Recipe, asked: Sequence[Question], out: Path) -> Path:
    exam = [[question.id, list(question.messages), list(question.answers)] for question in asked]
    how = [recipe.evaluate.max_tokens, recipe.evaluate.batch_size]
    return out / f"{make_id(list(who), how, exam)}.parquet"


def _keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table of answers, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")  # two processes may examine the same model
    artifacts.write_table(partial, PREDICTIONS, rows)
    partial.rename(path)
    artifacts.sync_folder(path.parent)


def _teacher(recipe: Recipe, asked: Sequence[Question], out: Path) -> Path | None:
    """The table of the teacher's answers, None where the answers to learn from came from a file."""
    teacher = evaluate.examined(recipe)
    if teacher is None:
        return None
    system = collect.system_message(recipe)
    determined = collect.sources(recipe)
    digests = {name: artifacts.digest(path) for name, path in sorted(determined.items())}
    who = ["teacher", teacher.fingerprinted(), recipe.seed, system, digests]
    if teacher.provider != "local":  # it is asked greedily too, but otherwise as in collect
        who += [recipe.collect.sampling.fingerprinted(), evaluate.hosted_room(recipe)]
    path = _place(who, recipe, asked, out)
    if path.is_file() and all_answered(path):
        return path
    if teacher.provider == "local":
        first: list[Message] = [{"role": "system", "content": system}] if system is not None else []
        loaded = local.load(local_teacher_folder(recipe, teacher), trust_remote_code=teacher.trust_remote_code)
        chats: evaluate.Chats = {
            "student": [list(question.messages) for question in asked],
            "teacher": [first + list(question.messages) for question in asked],
        }
        answers = evaluate.ask({"teacher": loaded}, chats, recipe.evaluate)["teacher"]
    else:
        answers, _ = evaluate.ask_hosted(recipe, teacher, asked, out)
    _keep(path, evaluate.mark("teacher", asked, answers, [(0.0, 0)] * len(asked)))
    return path


def all_answered(table: Path) -> bool:
    """Whether there is an answer to each question with accepted ones. What a provider failed on is asked again."""
    return not any(row["answers"] and row["exact"] is None for row in artifacts.read_rows(table, ["answers", "exact"]))


def _students(methods: Sequence[str], variants: Sequence[Variant], found: dict[str, list[Path]]) -> list[Student]:
    """The rows of the table, in its order."""
    rows, own = {}, dict[str, str]()
    for variant in variants:
        manifest = flow.read_manifest(variant.run, "train")
        assert manifest
        rows[variant.name] = manifest["counts"]["training"]["student"]["rows"]
        if not variant.before:
            own[variant.name] = report.identity(variant.run, variant.recipe)
        for baseline in variant.recipe.train.baselines:
            rows[f"{variant.name} random"] = manifest["counts"]["training"][baseline]["rows"]
    students = [Student("untrained", "untrained", None, found["untrained"], None, None)]
    before = "untrained"
    for name, label in (STEPS | WITHOUT).items():
        random = f"{name} random" if f"{name} random" in found else None
        students.append(Student(name, label, rows[name], found[name], before, random, own[name]))
        if random:
            students.append(Student(random, f"random, as many as {label}", rows[random], found[random], None, None))
        before = name if name in STEPS else before
    for method in methods[1:]:
        label = f"{method}, after {methods[0]}" if method == "on_policy" else method
        more = ("best_of", "best_of random", own.get(method))
        students.append(Student(method, label, rows[method], found[method], *more))
    return students


def score(
    asked: Sequence[Question], students: Sequence[Student], teacher: Path | None, resamples: int, seed: int
) -> dict[str, Any]:
    """Each student's accuracy over its seeds, its differences and its retention, with paired 95% intervals."""
    gold = [float(bool(question.answers)) for question in asked]
    tables = [path for student in students for path in student.answers] + ([teacher] if teacher else [])
    places = {path: number for number, path in enumerate(dict.fromkeys(tables))}
    order = {question.id: number for number, question in enumerate(asked)}
    # As in evaluate, questions that the teacher could not be asked say nothing of what a student kept.
    answered, right = list(gold), []
    for path in places:
        marks = [0.0] * len(asked)
        for answer in artifacts.read_rows(path, ["question_id", "exact"]):
            number = order[answer["question_id"]]
            marks[number] = float(answer["exact"] or 0)
            if path == teacher and answer["exact"] is None:
                answered[number] = 0.0
        right.append(marks)
    kept = [[mark * there for mark, there in zip(marks, answered, strict=True)] for marks in right]
    values = np.array([gold, answered, *right, *kept]).T  # (questions, 2 + 2 * tables)
    groups = [question.about for question in asked]
    draws = metrics.resample(values, groups, resamples, seed)
    facts, taught_facts = metrics.counted(groups, gold), metrics.counted(groups, answered)
    (shares, kept_shares), (totals, kept_totals) = _shares(draws), _shares(values.sum(0, keepdims=True))
    taught = places[teacher] if teacher else None
    seeds = len(students[0].answers)
    drawn = np.random.default_rng([seed, 1]).integers(0, seeds, (resamples, seeds))

    accuracy, samples = {}, {}
    for student in students:
        own = [places[path] for path in student.answers]
        accuracy[student.name] = [float(totals[0, place]) for place in own]
        samples[student.name] = np.take_along_axis(shares[:, own], drawn, 1).mean(1)
    means = {name: float(np.mean(by_seed)) for name, by_seed in accuracy.items()}
    theirs = float(kept_totals[0, taught]) if taught is not None and any(answered) else None
    found: list[dict[str, Any]] = []
    for student in students:
        name = student.name
        row: dict[str, Any] = {"name": name, "label": student.label, "rows": student.rows}
        row |= {"identity": student.identity}
        row |= {"accuracy": means[name], "by_seed": accuracy[name], "accuracy_ci": None}
        row["accuracy_ci"] = metrics.share_interval(means[name], samples[name], facts)
        for key, other in (("over_before", student.before), ("over_random", student.random)):
            row[key] = means[name] - means[other] if other else None
            row[f"{key}_ci"] = metrics.interval(samples[name] - samples[other]) if other else None
        row["same_as"] = next((one.name for one in students[: len(found)] if one.answers == student.answers), None)
        row["retention"] = row["retention_ci"] = None
        if taught is not None and theirs:
            own = [places[path] for path in student.answers]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = np.take_along_axis(kept_shares[:, own], drawn, 1).mean(1) / kept_shares[:, taught]
            retention = float(kept_totals[0, own].mean()) / theirs
            row |= {"retention": retention, "retention_ci": metrics.interval(ratios)}
        found.append(row)
    ends = None
    if taught is not None and theirs is not None:
        ends = metrics.share_interval(theirs, kept_shares[:, taught], taught_facts)
    return {
        "questions": int(values[:, 0].sum()),
        "bootstrap": resamples,
        "teacher": theirs,
        "teacher_ci": ends,
        "variants": found,
    }


def _shares(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sums of score's columns, each table's share that is right, of all questions and of those that the teacher
    answered: (sums, tables) both."""
    own, kept = np.split(sums[:, 2:], 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return own / sums[:, :1], kept / sums[:, 1:2]


def table(scores: dict[str, Any]) -> str:
    """The scores as a table in Markdown."""
    lines = [
        "| student | rows | accuracy (95% interval) | over the step before | over as many random rows | retention |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    if scores["teacher"] is not None:
        lines.append(f"| teacher | | {_share(scores['teacher'], scores['teacher_ci'])} | | | |")
    for row in scores["variants"]:
        if row["same_as"] and row["same_as"] not in STEPS:
            continue  # a random one that stands there already
        cells = [
            row["label"] + (f" (the same rows as {STEPS[row['same_as']]})" if row["same_as"] else ""),
            "" if row["rows"] is None else f"{row['rows']:,}",
            _share(row["accuracy"], row["accuracy_ci"]),
            _points(row["over_before"], row["over_before_ci"]),
            _points(row["over_random"], row["over_random_ci"]),
            _share(row["retention"], row["retention_ci"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ", ".join(str(seed) for seed in scores["seeds"])
    count = "one seed" if len(scores["seeds"]) == 1 else f"{len(scores['seeds'])} seeds"
    lines += [
        "",
        f"Means over {count} of the student ({seeds}), on {scores['questions']:,} held-out questions, greedily.",
        "Differences are percentage points of accuracy, paired by question and seed. For `without ...` and for methods",
        "the step before is `+ best-of`, the recipe as it is.",
        f"Intervals: {scores['bootstrap']:,} resamples of facts and seeds.",
    ]
    return "\n".join(lines) + "\n"


def _share(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}%" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def _points(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.1f}" + (f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else "")
