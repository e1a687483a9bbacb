"""What is made of packages: written once into the user's cache, and from there read like any other."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hf_accum.files import fill_folder_atomically

_NUM_FILES = 4
Row = Mapping[str, object]


def cached_folder(name: str, write: Callable[[Path], None]) -> str:
    """The folder of that name in the cache, which `write` fills where it is not there yet."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "hf_accum" / name
    if not folder.is_dir():
        fill_folder_atomically(folder, write)
    return str(folder)


def cached_dataset(name: str, read_rows: Callable[[], Iterable[Row]], row_group_size: int) -> str:
    """The folder of a dataset in Parquet files, which are made of the rows where it is not there yet."""
    return cached_splits(name, lambda: {"train": read_rows()}, row_group_size)


def cached_splits(name: str, read_splits: Callable[[], Mapping[str, Iterable[Row]]], row_group_size: int) -> str:
    """The same of a dataset that has several splits, by name."""

    def write(partial: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for split, read in read_splits().items():
            rows = list(read)
            for index in range(_NUM_FILES):
                table = pa.Table.from_pylist(rows[index::_NUM_FILES])
                file = partial / f"{split}-{index:05}-of-{_NUM_FILES:05}.parquet"
                pq.write_table(table, file, row_group_size=row_group_size)

    return cached_folder(name, write)
