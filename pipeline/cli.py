"""The command line. `seqkd --help` imports nothing heavy: each command imports what it needs when it runs."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import SeqkdError

STAGE_HELP = {
    "generate": "Make the prompts.",
    "collect": "Collect the teacher's answers.",
    "filter": "Reject answers that are not good enough.",
    "dedupe": "Keep one row of each group that says the same.",
    "assemble": "Withhold what overlaps held-out questions and split the rest.",
    "train": "Fine-tune the student with TRL.",
    "evaluate": "Measure what the student kept, and write report.html.",
}

app = typer.Typer(
    name="seqkd",
    help="Distil a teacher model into a smaller student, from prompts to report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with seqkd.")]
RunArgument = Annotated[str, typer.Argument(help="The run's name.")]
RunOption = Annotated[str | None, typer.Option("--run", metavar="NAME", help="The run's name [default: the recipe's].")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe; may be repeated.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace stages that were made from something else.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Where runs and caches lie [default: SEQKD_DATA or ./data]."),
]


def _use_data(data: Path | None) -> None:
    if data is not None:
        os.environ["SEQKD_DATA"] = str(data)


def _load(recipe: str, overrides: list[str] | None, run: str | None) -> tuple[Any, Path]:
    from pipeline import flow, paths
    from pipeline.recipe import load_recipe

    path = paths.find_recipe(recipe)
    return load_recipe(path, overrides), flow.run_folder(run or path.stem)


@app.command()
def run(
    recipe: RecipeArgument,
    run: RunOption = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Make this stage and those after it anew.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="End after this stage.")] = None,
    set_: SetOption = None,
    force: ForceOption = False,
    data: DataOption = None,
) -> None:
    """Run all stages in turn, skipping those that are complete. The same command continues an interrupted run."""
    from pipeline import flow
    from pipeline.errors import UserError, nearest

    _use_data(data)
    for option, stage in (("--from", from_), ("--to", to)):
        if stage is not None and stage not in flow.STAGES:
            raise UserError(f"{option} {stage}: there is no such stage.{nearest(stage, flow.STAGES)}")
    stages = flow.STAGES[: flow.STAGES.index(to or flow.STAGES[-1]) + 1]
    if from_ and from_ not in stages:
        raise UserError(f"--from {from_} comes after --to {to}. Leave one of them out.")
    loaded, folder = _load(recipe, set_, run)
    flow.run_stages(loaded, folder, stages, again=from_, force=force)
    _print_result(folder, stages)


def _stage_command(stage: str) -> None:
    @app.command(stage, help=STAGE_HELP[stage])
    def command(
        recipe: RecipeArgument,
        run: RunOption = None,
        set_: SetOption = None,
        force: ForceOption = False,
        data: DataOption = None,
    ) -> None:
        from pipeline import flow

        _use_data(data)
        loaded, folder = _load(recipe, set_, run)
        flow.run_stages(loaded, folder, [stage], force=force)


for _stage in STAGE_HELP:
    _stage_command(_stage)


@app.command()
def plan(
    recipe: RecipeArgument,
    run: RunOption = None,
    set_: SetOption = None,
    data: DataOption = None,
) -> None:
    """Say what would run, how many requests it would send and what they would cost. Sends nothing, runs nothing."""
    from rich.console import Console
    from rich.table import Table

    from pipeline import flow
    from pipeline.stages import collect, evaluate, generate
    from pipeline.stages import filter as filter_stage

    _use_data(data)
    loaded, folder = _load(recipe, set_, run)
    stages = Table(title=f"plan of {folder.name}", title_justify="left")
    for column in ("stage", "state"):
        stages.add_column(column)
    states = dict(flow.plan(loaded, folder))
    for stage, state in states.items():
        stages.add_row(stage, state)
    requests = Table(title="requests (tokens and dollars: the most)", title_justify="left")
    for column in ("teacher", "provider", "requests", "tokens in", "tokens out", "US$"):
        words = column in ("teacher", "provider")
        requests.add_column(column, justify="left" if words else "right", overflow="fold" if words else "ellipsis")
    prompts, completions = (flow.table_if_complete(folder, table) for table in ("prompts", "completions"))
    estimates: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "generate": lambda: generate.estimate(loaded, prompts),
        "collect": lambda: collect.estimate(loaded, prompts),  # looks up every answer in the store
        "filter": lambda: filter_stage.estimate(loaded, prompts, completions),
        "evaluate": lambda: evaluate.estimate(loaded),
    }
    lines = {stage: estimate() for stage, estimate in estimates.items() if not states[stage].startswith("complete")}
    for line in (line for stage in lines.values() for line in stage):
        usd = "no price" if line["usd"] is None else f"{line['usd']:,.2f}"
        requests.add_row(
            line["teacher"],
            line["provider"],
            f"{line['requests']:,}",
            f"{line['input_tokens']:,}",
            f"{line['output_tokens']:,}",
            "0" if line["provider"] == "local" else usd,
        )
    console = Console()
    console.print(stages)
    if requests.row_count:
        console.print(requests)
    if loaded.generate.target_kept and not flow.table_if_complete(folder, "prompts"):
        wanted = loaded.generate.target_kept
        console.print(
            f"generate asks in rounds until {wanted:,} rows are kept, at most {loaded.generate.max_rounds}: "
            f"{loaded.rows_to_prompts(wanted):,} prompts if every answer is kept; half of them are reckoned with."
        )
    if lines.get("generate"):
        console.print(
            "generate's requests are those of its first time of asking. What comes back unusable, or is not new, it "
            "asks for again, at most seven times a quarter as many."
        )
    if loaded.collect.budget_usd:
        console.print(f"The spend stops before ${loaded.collect.budget_usd:,.2f} (collect.budget_usd).")


@app.command()
def ablate(
    recipe: RecipeArgument,
    run: RunOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Students of each kind.")] = 3,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Methods of train to compare [default: ablate.methods].")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Students trained at a time [default: one a core, or one with a GPU].")
    ] = None,
    set_: SetOption = None,
    force: ForceOption = False,
    data: DataOption = None,
) -> None:
    """Train the student again without each step, over several seeds, and say which step earned what. Goes on where it
    was interrupted."""
    from pipeline import ablate as ablate_module
    from pipeline import paths

    _use_data(data)
    _, folder = _load(recipe, set_, run)
    named = [name.strip() for name in methods.split(",") if name.strip()] if methods else []
    scores = ablate_module.ablate(
        paths.find_recipe(recipe), folder, overrides=set_ or [], seeds=seeds, methods=named, force=force, jobs=jobs
    )
    typer.echo(ablate_module.table(scores) + f"\n{folder / 'ablation.md'}")


@app.command()
def status(run: RunArgument, data: DataOption = None) -> None:
    """Show each stage's state and time, and where every prompt x sample of the run has ended."""
    from rich.console import Console
    from rich.table import Table

    from pipeline import flow
    from pipeline.runs import open_run

    _use_data(data)
    opened = open_run(run)
    table = Table(title=f"run {opened.name}", title_justify="left")
    for column in ("stage", "state", "time", "rows"):
        table.add_column(column, justify="right" if column == "time" else "left")
    holder = flow.holder(opened.path)
    for stage in flow.STAGES:
        manifest = flow.read_manifest(opened.path, stage)
        if manifest:
            table.add_row(stage, "complete", f"{manifest['seconds']:.1f} s", flow.outcomes(manifest))
        else:
            begun = (opened.path / f".{stage}.partial").exists()
            table.add_row(stage, ("running" if holder else "interrupted") if begun else "not run", "", "")
    console = Console()
    console.print(table)
    if holder:
        console.print(f"{holder} is at work on it.", highlight=False, soft_wrap=True)
    _print_account(console, opened)


@app.command()
def show(
    run: RunArgument,
    stage: Annotated[str | None, typer.Argument(help="A stage or table; none: one prompt's whole life.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only rows with this reason.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 5,
    prompt: Annotated[
        str | None, typer.Option(help="The life of the prompt with this id (or its first digits).")
    ] = None,
    data: DataOption = None,
) -> None:
    """Show rows of a run in the terminal: a sample of a stage's tables, or the whole life of a prompt."""
    from pipeline import show as show_module

    _use_data(data)
    show_module.show(run, stage, reason=reason, sample=sample, prompt=prompt)


@app.command()
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Push the training data too, as this dataset.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see [default: private].")] = False,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The student's README.md, instead of the one that is made.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The teachers' terms allow me to publish this.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and cards; send nothing.")] = False,
    data: DataOption = None,
) -> None:
    """Upload the student with its model card to the Hugging Face hub, with the token of HF_TOKEN or `hf auth login`."""
    from pipeline import push as push_module
    from pipeline.runs import open_run

    _use_data(data)
    addresses = push_module.push(
        open_run(run), repo, data_repo=dataset, card=card, public=public, yes=yes, dry_run=dry_run
    )
    for address in addresses:
        typer.echo(address)


@app.command()
def chat(
    run: RunArgument,
    teacher: Annotated[bool, typer.Option("--teacher", help="Show the local teacher's answers beside.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the likeliest token each time.")] = 0.0,
    data: DataOption = None,
) -> None:
    """Talk to the student. Questions from a pipe work too, one a line. /reset forgets what was said, /quit ends."""
    from pipeline import chat as chat_module
    from pipeline.runs import open_run

    _use_data(data)
    chat_module.chat(open_run(run), teacher=teacher, max_tokens=max_tokens, temperature=temperature)


@app.command("new-domain")
def new_domain(name: Annotated[str, typer.Argument(help="Letters, digits, '_' and '-'.")]) -> None:
    """Write the skeleton of a domain of your own: prompts/NAME, data/NAME and a recipe NAME.yaml that runs."""
    from pipeline import domain

    folder = domain.new_domain(name, Path.cwd())
    typer.echo(f"wrote {folder}, data/{name} and {name}.yaml; edit them, then: seqkd run {name}.yaml")


cache = typer.Typer(help="The response store: what was asked, what came back and what it cost.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command("show")
def cache_show(data: DataOption = None) -> None:
    """Size, entries and spend, by model."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.calls import store

    _use_data(data)
    held = store.summary(store.default_path())
    table = Table(title=f"{held['path']}: {held['bytes']:,} bytes", title_justify="left")
    for column in ("provider", "model", "answers", "bytes", "US dollars"):
        table.add_column(column, justify="left" if column in ("provider", "model") else "right")
    for row in held["models"]:
        usd = "" if row["usd"] is None else f"{row['usd']:,.4f}"
        table.add_row(row["provider"], row["model"], f"{row['answers']:,}", f"{row['bytes']:,}", usd)
    console = Console()
    console.print(table)
    if held["open_intents"]:
        console.print(f"{held['open_intents']:,} requests were sent and not answered; they may have been billed.")


@cache.command("export")
def cache_export(
    target: Annotated[Path, typer.Argument(help="The JSON Lines file to write.")],
    model: Annotated[str | None, typer.Option(help="Only this model's answers.")] = None,
    data: DataOption = None,
) -> None:
    """Write the stored requests and answers as JSON lines."""
    from pipeline import flow
    from pipeline.calls import store

    _use_data(data)
    with flow.storage_errors():
        typer.echo(f"{store.export(store.default_path(), target, model):,} answers written to {target}")


@cache.command("prune")
def cache_prune(
    older_than_days: Annotated[float | None, typer.Option(min=0, help="Only answers older than this.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's answers.")] = None,
    data: DataOption = None,
) -> None:
    """Delete stored answers. They would be asked, and paid, again."""
    from pipeline import flow
    from pipeline.calls import store

    _use_data(data)
    with flow.storage_errors():
        gone = store.prune(store.default_path(), older_than_days=older_than_days, model=model)
    typer.echo(f"{gone:,} answers deleted")


def _print_result(folder: Path, stages: Sequence[str]) -> None:
    """The comparison, the account and where to look, at the end of `seqkd run`."""
    from rich.console import Console

    from pipeline import flow
    from pipeline.report import terminal_table
    from pipeline.runs import Run

    console = Console()
    opened = Run(folder)
    if "evaluate" in stages:
        console.print(terminal_table(opened.scores_json))
    _print_account(console, opened)
    seconds = sum(manifest["seconds"] for stage in stages if (manifest := flow.read_manifest(folder, stage)))
    made = f"Report: {folder / 'evaluate' / 'report.html'}" if "evaluate" in stages else f"See {folder / stages[-1]}"
    console.print(f"The stages took {seconds:,.0f} s. {made}", highlight=False, soft_wrap=True)


def _print_account(console: Any, run: Any) -> None:
    """Where every prompt x sample of a runs.Run ended, as far as it has gone."""
    if account := run.account():
        ends = " + ".join(f"{rows:,} {end}" for end, rows in account.items() if end != "asked")
        console.print(f"{account['asked']:,} asked = {ends}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the user can mend it, 130 interrupted (run it again to go on)."""
    # OpenMP threads that spin long while they wait starve each other wherever another process runs on the same cores:
    # a training step on two cores took 58 ms alone and 197 ms beside a busy process, with this 62 and 122.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # No telemetry: huggingface_hub's and that of whatever respects this variable.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if sys.stdin is None:  # closed by whoever started this (`<&-`): there is nothing to read, and nobody to ask
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    command = typer.main.get_command(app)
    try:
        # Typer catches Ctrl-C itself and, in this mode, returns the exit code.
        code = command.main(args=arguments, prog_name="seqkd", standalone_mode=False)
    except SeqkdError as error:
        sys.stdout.flush()
        print(f"seqkd: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        # click's own errors about arguments; recognised by their method so that click need not be imported by name.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    if code == 130:
        print("\nseqkd: interrupted; what was finished is kept, and the same command continues", file=sys.stderr)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
