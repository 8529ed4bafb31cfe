"""Look at a run: its tables as DataFrames, the life of one prompt, the account and the state of each stage."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifacts, flow, paths
from pipeline.errors import UserError, nearest
from pipeline.records import TABLES

if TYPE_CHECKING:
    import datasets
    import pandas as pd

# Where each row of an account can end, in the order in which the stages decide.
_ENDS = (
    ("failures", "failed"),
    ("rejected", "rejected"),
    ("duplicates", "duplicate"),
    ("withheld", "withheld"),
    ("train", "train"),
    ("validation", "validation"),
)


@dataclass(frozen=True)
class Run:
    """One run's folder, read on demand. Each property reads its table anew and raises UserError while the stage that
    writes it is not complete."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def prompts(self) -> "pd.DataFrame":
        """What the teachers were asked: one row a prompt."""
        return self.table("prompts")

    @property
    def completions(self) -> "pd.DataFrame":
        """Every answer that came: one row a prompt and sample."""
        return self.table("completions")

    @property
    def failures(self) -> "pd.DataFrame":
        """Requests that ended without an answer, with the reason."""
        return self.table("failures")

    @property
    def kept(self) -> "pd.DataFrame":
        """Answers that passed the filter and, once dedupe is complete, repeat no other."""
        return self.table("kept")

    @property
    def rejected(self) -> "pd.DataFrame":
        """Answers that the filter dropped, with the reasons."""
        return self.table("rejected")

    @property
    def duplicates(self) -> "pd.DataFrame":
        """Answers that repeat another, with the row each one repeats."""
        return self.table("duplicates")

    @property
    def withheld(self) -> "pd.DataFrame":
        """Rows kept out of training: they overlap a held-out question or a better answer was taken."""
        return self.table("withheld")

    @property
    def train(self) -> "pd.DataFrame":
        """The training set in TRL's conversational form."""
        return self.table("train")

    @property
    def validation(self) -> "pd.DataFrame":
        """The validation set, of other prompts than `train`."""
        return self.table("validation")

    @property
    def predictions(self) -> "pd.DataFrame":
        """Each model's answer to each held-out question."""
        return self.table("predictions")

    @property
    def scores(self) -> "pd.DataFrame":
        """The comparison: one row a model, one column a figure."""
        import pandas as pd

        models = {name: figures for name, figures in self.scores_json.items() if "parameters" in _mapping(figures)}
        return pd.DataFrame.from_dict(models, orient="index")

    @property
    def scores_json(self) -> dict[str, Any]:
        """evaluate/scores.json as it is. Raises UserError while evaluate is not complete."""
        scores: dict[str, Any] = json.loads(self._file("evaluate", "scores.json").read_text(encoding="utf-8"))
        return scores

    def table(self, name: str) -> "pd.DataFrame":
        """A table by name as a DataFrame. Raises UserError for an unknown name or a stage that is not complete."""
        return artifacts.read_table(self.table_path(name)).to_pandas()

    def dataset(self, name: str) -> "datasets.Dataset":
        """A table by name as a datasets.Dataset (memory-mapped through Arrow, nothing is copied to a cache)."""
        import datasets

        return datasets.Dataset(artifacts.read_table(self.table_path(name)))

    def table_path(self, name: str) -> Path:
        """The Parquet file of a table. `kept` is dedupe's once that stage is complete, and filter's before."""
        if name not in TABLES:
            raise UserError(f"there is no table '{name}'.{nearest(name, TABLES)}")
        stage = TABLES[name][0]
        if name == "kept" and flow.read_manifest(self.path, "dedupe"):
            stage = "dedupe"
        return self._file(stage, f"{name}.parquet")

    def _file(self, stage: str, file: str) -> Path:
        manifest = flow.read_manifest(self.path, stage)
        if manifest is None:
            raise UserError(
                f"run {self.name}: {stage} is not complete, so there is no {file} yet. Run `seqkd run` first."
            )
        if file not in manifest["files"]:
            raise UserError(f"run {self.name}: {stage} wrote no {file} with this recipe.")
        return self.path / stage / file

    def trace(self, prompt_id: str) -> "pd.DataFrame":
        """The whole life of one prompt: a row for each of its samples with the question, the answer, where the row
        ended (`ended`: train, validation, withheld, duplicate, rejected, failed, or the last complete stage it was kept
        by) and why. `prompt_id` may be shortened to its first digits. Raises UserError if no prompt matches."""
        import pandas as pd
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        prompts = artifacts.read_table(self.table_path("prompts"), columns=["id", "messages"])
        found = prompts.filter(pc.starts_with(prompts["id"], prompt_id)).to_pylist()
        if len(found) != 1:
            problem = "no prompt has" if not found else f"{len(found)} prompts have"
            raise UserError(f"run {self.name}: {problem} an id that begins with '{prompt_id}'.")
        prompt = found[0]

        def rows_of(path: Path, column: str = "prompt_id") -> list[dict[str, Any]]:
            return pq.read_table(path, filters=pc.field(column) == prompt["id"]).to_pylist()

        life: dict[str, dict[str, Any]] = {}
        for name in ("completions", "failures"):
            if self._has(name):
                for row in rows_of(self.table_path(name)):
                    life[row["id"]] = {
                        "id": row["id"],
                        "prompt_id": prompt["id"],
                        "sample": row["sample"],
                        "teacher": row["teacher"],
                        "question": prompt["messages"][-1]["content"],
                        "answer": row.get("text"),
                        "finish_reason": row.get("finish_reason"),
                        "ended": "collect",
                    }
        for stage in ("filter", "dedupe"):
            if flow.read_manifest(self.path, stage):
                for row in rows_of(self.path / stage / "kept.parquet"):
                    life[row["id"]]["ended"] = stage
        for name, end in _ENDS:
            if not self._has(name):
                continue
            path = self.table_path(name)
            ids = set(life)
            for row in pq.read_table(path, filters=pc.field("id").isin(ids)).to_pylist() if ids else []:
                told = {
                    key: row.get(key) for key in ("reason", "duplicate_of", "similarity", "overlaps") if row.get(key)
                }
                life[row["id"]].update(told, ended=end)
        columns = ["id", "prompt_id", "sample", "teacher", "question", "answer", "finish_reason", "ended"]
        extra = [
            key for key in ("reason", "duplicate_of", "similarity", "overlaps") if any(key in r for r in life.values())
        ]
        rows = sorted(life.values(), key=lambda row: (row["teacher"], row["sample"]))
        return pd.DataFrame(rows, columns=[*columns, *extra])

    def _has(self, table: str) -> bool:
        manifest = flow.read_manifest(self.path, TABLES[table][0])
        return manifest is not None and f"{table}.parquet" in manifest["files"]

    def account(self) -> dict[str, int]:
        """asked = failed + rejected + duplicate + withheld + kept, as far as the run has gone. That each row is in
        exactly one table was checked, by its id, before each stage was published.

        Raises AccountError if the stages' counts do not add up."""
        return flow.account(self.path)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def open_run(name: str, data: Path | str | None = None) -> Run:
    """See pipeline.open_run."""
    root = Path(data) / "runs" if data is not None else paths.runs_root()
    path = root / name
    if not name or not path.is_dir():
        known = [folder.name for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
        raise UserError(f"there is no run '{name}' in {root}.{nearest(name, known)} `seqkd run RECIPE` makes one.")
    return Run(path)
