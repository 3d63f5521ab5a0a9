"""Numbers and pictures out of parquet files, as NumPy arrays of checked shape."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actlens.errors import SceneError
from actlens.text import clean_text

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Mapping[str, np.ndarray]
"""Column -> its values: `row` for scalars, `row dim` for vectors."""

MAX_ROWS = 50_000_000


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what PyArrow raises on a damaged file into a SceneError that names the file."""
    import pyarrow as pa

    try:
        yield
    except SceneError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as problem:
        raise SceneError(
            f"{path} cannot be read as a parquet table: {clean_text(problem)}."
        ) from problem


def read_rows(path: Path, *, scalars: Sequence[str], vectors: Mapping[str, int]) -> Rows:
    """The named columns of the whole file: scalars in their own type, vectors in float32.

    Raises:
        SceneError: if the file cannot be read, lacks a column, or holds values that are missing,
            not finite, or of another dimension than declared.
    """
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        if file.metadata.num_rows > MAX_ROWS:
            raise SceneError(f"{path} has {file.metadata.num_rows} rows, above {MAX_ROWS}.")
        present = set(file.schema_arrow.names)
        for column in (*scalars, *vectors):
            if column not in present:
                raise SceneError(f"{path} lacks the column {column}, which info.json declares.")
        table = file.read(columns=[*scalars, *vectors])
        rows: dict[str, np.ndarray] = {}
        for column in scalars:
            rows[column] = _whole(table, column, path).to_numpy()
        for column, dim in vectors.items():
            rows[column] = _vectors(_whole(table, column, path), dim, column, path)
    return rows


def read_pictures(path: Path, column: str, *, episode: int) -> list[Mapping[str, object]]:
    """The structs `{bytes, path}` of one episode's pictures, not yet decoded.

    Raises:
        SceneError: if the file cannot be read or has no such column of pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        schema = pq.read_schema(path)
        if column not in schema.names or not pa.types.is_struct(schema.field(column).type):
            raise SceneError(f"{path} has no column of pictures {column}.")
        table = pq.read_table(path, columns=[column], filters=[("episode_index", "=", episode)])
        return table.column(column).to_pylist()


def read_records(path: Path, *, skip: str) -> list[dict[str, object]]:
    """The rows of a small table as dictionaries, without the columns that start with `skip`.

    Raises:
        SceneError: if the file cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        if file.metadata.num_rows > MAX_ROWS:
            raise SceneError(f"{path} has {file.metadata.num_rows} rows, above {MAX_ROWS}.")
        names = [name for name in file.schema_arrow.names if not name.startswith(skip)]
        return file.read(columns=names).to_pylist()


def _whole(table: "pa.Table", column: str, path: Path) -> "pa.Array":
    values = table.column(column).combine_chunks()
    if values.null_count:
        raise SceneError(f"{path}: the column {column} has {values.null_count} missing values.")
    return values


def _vectors(values: "pa.Array", dim: int, column: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    if isinstance(values, pa.FixedSizeListArray):
        lengths = {values.type.list_size}
        numbers = values.flatten()
    elif isinstance(values, pa.ListArray | pa.LargeListArray):
        lengths = set(np.unique(values.value_lengths().to_numpy()).tolist())
        numbers = values.flatten()
    else:
        lengths, numbers = {1}, values
    if lengths - {dim}:
        raise SceneError(
            f"{path}: {column} has vectors of {sorted(lengths)} numbers; info.json declares {dim}."
        )
    floats = numbers.to_numpy(zero_copy_only=False)
    if floats.dtype.kind not in "fiu" or not np.isfinite(floats).all():
        raise SceneError(f"{path}: the column {column} holds values that are not finite numbers.")
    return floats.astype(np.float32).reshape(-1, dim)
