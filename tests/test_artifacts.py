import itertools
import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.errors import UserError
from pipeline.records import KEPT, make_id

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


def rows(count):
    return [{"id": f"{n:06d}", "n": n} for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, artifacts.ROW_GROUP - 1, artifacts.ROW_GROUP, 2 * artifacts.ROW_GROUP + 5])
def test_rows_come_back_in_order(tmp_path, count):
    path = tmp_path / "t.parquet"
    assert artifacts.write_table(path, SCHEMA, iter(rows(count))) == count
    assert list(artifacts.read_rows(path)) == rows(count)
    assert artifacts.count_rows(path) == count


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=6))
def test_bytes_do_not_depend_on_how_rows_were_batched(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("t")
    everything = rows(40_000)
    artifacts.write_table(folder / "a.parquet", SCHEMA, everything)
    edges = [0, *sorted(cuts), len(everything)]
    batches = [
        pa.RecordBatch.from_pylist(everything[a:b], schema=SCHEMA) for a, b in zip(edges, edges[1:], strict=False)
    ]
    artifacts.write_table(folder / "b.parquet", SCHEMA, batches)
    artifacts.write_table(folder / "c.parquet", SCHEMA, pa.Table.from_pylist(everything, schema=SCHEMA))
    assert len({artifacts.file_digest(folder / f"{name}.parquet") for name in "abc"}) == 1


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=6))
def test_several_tables_at_once_have_the_bytes_of_one_at_a_time(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("t")
    table = pa.Table.from_pylist(rows(40_000), schema=SCHEMA)
    third = pa.array([n % 3 == 0 for n in range(len(table))])
    parts = [table.filter(third), table.filter(pc.invert(third))]
    for name, part in zip("ab", parts, strict=True):
        artifacts.write_table(folder / f"{name}.parquet", SCHEMA, part)
    edges = [0, *sorted(cuts), len(table)]
    (whole,) = table.combine_chunks().to_batches()
    batches = [
        [whole[a:b].filter(third[a:b]), whole[a:b].filter(pc.invert(third[a:b]))]
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    targets = [(folder / f"{name}.parquet", SCHEMA) for name in "cd"]
    assert artifacts.write_tables(targets, batches) == [len(part) for part in parts]
    for one, other in ("ac", "bd"):
        assert (folder / f"{one}.parquet").read_bytes() == (folder / f"{other}.parquet").read_bytes()


def test_a_folder_digest_sees_names_and_contents_but_not_hidden_files(tmp_path):
    (tmp_path / "a").write_text("1")
    first = artifacts.digest(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert artifacts.digest(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert artifacts.digest(tmp_path) != first


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=4), st.lists(st.text(), max_size=4))
def test_ids_differ_where_parts_differ(a, b):
    assert (make_id(*a) == make_id(*b)) == (a == b)
    assert len(make_id(*a)) == 20


TALK = pa.schema([("id", pa.string()), ("messages", KEPT.field("messages").type), ("text", pa.string())])


def talk(sizes):
    """Rows whose prompt and answer have about so many characters."""
    return [
        {"id": f"{n:06d}", "messages": [{"role": "user", "content": "p" * size}] * (n % 3), "text": f"{n}" + "t" * size}
        for n, size in enumerate(sizes)
    ]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, 5_000, 40_000]), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_long_rows_come_in_smaller_batches_and_row_groups_whose_bytes_do_not_depend_on_the_batches(
    tmp_path_factory, sizes, cuts
):
    folder = tmp_path_factory.mktemp("t")
    everything = talk(sizes)
    small = {"ROW_GROUP": 20, "GROUP_TEXT": 50_000, "BATCH_BYTES": 20_000, "SURE_BYTES": 100_000}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(artifacts, name, value)
        artifacts.write_table(folder / "a.parquet", TALK, everything)
        edges = [0, *sorted(min(cut, len(everything)) for cut in cuts), len(everything)]
        pieces = [pa.RecordBatch.from_pylist(everything[a:b], schema=TALK) for a, b in itertools.pairwise(edges)]
        artifacts.write_table(folder / "b.parquet", TALK, pieces)
        assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
        batches = list(artifacts.read_batches(folder / "a.parquet"))
    assert [row for batch in batches for row in batch.to_pylist()] == everything
    assert all(batch.num_rows == 1 or batch.nbytes <= 20_000 for batch in batches)
    assert all(not column.offset for batch in batches for column in batch.columns)  # no slices: dedupe.texts_of
    footer = pq.read_metadata(folder / "a.parquet")
    for group in range(footer.num_row_groups - 1):  # a group ends where it has enough
        there = pq.ParquetFile(folder / "a.parquet").read_row_group(group).to_pylist()
        text = [sum(len(m["role"] + m["content"]) for m in r["messages"]) + len(r["id"] + r["text"]) for r in there]
        assert sum(text[:-1]) < 50_000 and (len(there) == 20 or sum(text) >= 50_000)


@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 << 30, reason="needs more than 4 GiB of memory"
)
def test_few_long_texts_that_come_again_and_again_are_read_in_parts(tmp_path):
    """80 prompts of 30 MB, all the same: small as a dictionary, too large for Arrow in one batch of texts."""
    path = tmp_path / "t.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 80, pa.int32()), pa.array(["x" * 30_000_000]))
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 80), texts], ["role", "content"])
    table = pa.table({"id": ["a"] * 80, "messages": pa.ListArray.from_arrays(range(81), turns)})
    pq.write_table(table, path, store_schema=False)  # so that it is read as texts
    batches = artifacts.read_batches(path, schema=KEPT)
    assert [(b.num_rows, b.schema.field("messages").type) for b in batches] == [(2, KEPT.field("messages").type)] * 40


def as_polars(table):
    """As polars writes it: texts and lists with 64-bit offsets."""

    def large(kind):
        if pa.types.is_string(kind):
            return pa.large_string()
        if pa.types.is_list(kind):
            return pa.large_list(large(kind.value_type))
        return pa.struct([(f.name, large(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind

    return table.cast(pa.schema([(field.name, large(field.type)) for field in table.schema]))


def as_pandas(table):
    """What pandas makes of it and writes; a column of nothing but null has no type any more."""
    return pa.Table.from_pandas(table.to_pandas())


def as_datasets(table):
    import datasets

    return datasets.Dataset(table).with_format("arrow")[:]


def as_dictionaries(table):
    """Texts as dictionaries, inside the messages too."""
    for name in ("id", "text", "teacher"):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    turns = table["messages"].combine_chunks()
    contents = [turns.values.field("content").dictionary_encode(), turns.values.field("role").dictionary_encode()]
    turned = pa.ListArray.from_arrays(turns.offsets, pa.StructArray.from_arrays(contents, ["content", "role"]))
    return table.set_column(table.schema.get_field_index("messages"), "messages", turned)


@pytest.mark.parametrize("written", [as_polars, as_pandas, as_datasets, as_dictionaries])
def test_a_table_that_another_program_wrote_again_is_the_same_table(tmp_path, written):
    blank = dict.fromkeys(KEPT.names)
    rows = [
        blank | {"id": f"{n}", "prompt_id": "p", "sample": n, "text": "t" * n, "teacher": "t", "finish_reason": "stop"}
        | {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{n}"}], "input_tokens": n}
        for n in range(5)
    ]  # fmt: skip
    path = tmp_path / "t.parquet"
    pq.write_table(written(pa.Table.from_pylist(rows, schema=KEPT)), path)
    assert artifacts.check(path, KEPT, "filter") == 5
    (batch,) = artifacts.read_texts(path, KEPT.names, needed=["id", "messages", "text"])
    assert batch.select(KEPT.names).to_pylist() == rows
    assert all(batch.schema.field(field.name).type == field.type for field in KEPT)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", pa.array([7])),
        ("text", pa.array([b"a"])),
        ("sample", pa.array(["7"])),
        ("messages", pa.array(["Who?"])),
        ("messages", pa.array([["Who?"]])),
        ("messages", pa.array([[{"role": "user"}]])),
        ("messages", pa.array([[{"from": "user", "value": "Who?"}]])),
    ],
)
def test_a_table_with_something_else_in_a_column_is_refused(tmp_path, column, values):
    table = pa.Table.from_pylist([dict.fromkeys(KEPT.names)], schema=KEPT)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=rf"the column '{column}' has type .*, not .*--from filter"):
        artifacts.check(tmp_path / "t.parquet", KEPT, "filter")


def test_half_a_token_is_no_count(tmp_path):
    table = pa.Table.from_pylist([dict.fromkeys(KEPT.names)] * 2, schema=KEPT)
    table = table.set_column(table.schema.get_field_index("input_tokens"), "input_tokens", pa.array([1.0, 2.5]))
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: a value does not fit its column \(.*2.5.*\). Mend the file."):
        list(artifacts.read_texts(tmp_path / "t.parquet"))
