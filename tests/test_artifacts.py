import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.records import make_id

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
