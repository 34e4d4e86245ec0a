"""Readers: every format, and every way in which a file can be wrong."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wardround_client.data.columns import cell_text
from wardround_client.data.conll import read_conll, to_iob2
from wardround_client.data.images import MAX_PIXELS, UnreadableImageError, decode
from wardround_client.data.readers import read
from wardround_common.errors import DataError
from wardround_common.spec.site import DataFormat, SiteData

WANTED = frozenset({"age", "label"})


def _read(folder: Path, name: str, format_: DataFormat, data: bytes, **site: object):
    (folder / name).write_bytes(data)
    spec = SiteData(format=format_, path=name, **site)  # type: ignore[arg-type]
    return read(spec, folder, WANTED, 16 if format_ == "npz" else None)


def _code(folder: Path, name: str, format_: DataFormat, data: bytes, **site: object) -> str:
    with pytest.raises(DataError) as caught:
        _read(folder, name, format_, data, **site)
    assert name in str(caught.value)
    assert name not in caught.value.public_message
    return caught.value.code


def _parquet(table: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    return buffer.getvalue()


def _npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{key: np.asarray(value) for key, value in arrays.items()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format_", "data"),
    [
        ("csv", b"name,age,label\nAnn,61,yes\nBob,,no\n"),
        ("csv", b'\xef\xbb\xbfname,age,label\r\nAnn,61,yes\r\n\r\n"B,b",,no\r\n'),
        ("jsonl", b'{"name":"Ann","age":61,"label":"yes"}\n\n{"age":null,"label":"no"}\n'),
        ("parquet", _parquet({"name": ["Ann", "Bob"], "age": [61, None], "label": ["yes", "no"]})),
    ],
)
def test_every_table_format_gives_the_same_columns_and_skips_the_others(tmp_path, format_, data):
    raw = _read(tmp_path, "data", format_, data)
    assert raw.num_rows == 2
    assert raw.columns == {"age": ("61", ""), "label": ("yes", "no")}
    assert set(raw.available) == {"name", "age", "label"}


def test_typed_cells_are_written_in_their_shortest_exact_form():
    values = [None, True, 3, 0.1, 1.0, float("nan"), np.float32(0.5), np.int8(4), "x"]
    texts = ["", "true", "3", "0.1", "1.0", "nan", "0.5", "4", "x"]
    assert [cell_text(value) for value in values] == texts
    with pytest.raises(TypeError):
        cell_text([1])


@pytest.mark.parametrize(
    ("format_", "data", "code"),
    [
        ("csv", b"", "empty_file"),
        ("csv", b"age,age\n1,2\n", "duplicate_column"),
        ("csv", b"age,label\n1,yes,3\n", "csv_malformed"),
        ("csv", b'age,label\n1,"yes\n', "csv_malformed"),
        ("csv", b"age,label\n1,\xff\n", "not_utf8"),
        ("jsonl", b'{"age":1}\n{"age":\n', "jsonl_malformed"),
        ("jsonl", b"[1]\n", "jsonl_malformed"),
        ("jsonl", b'{"age":[1]}\n', "unsupported_cell"),
        ("jsonl", b"[" * 100_000, "jsonl_malformed"),
        ("parquet", b"PAR1 cut", "parquet_malformed"),
        ("parquet", _parquet({"age": [1, 2]})[:-20], "parquet_malformed"),
        ("parquet", _parquet({"age": [b"x"]}), "unsupported_cell"),
        ("npz", b"PK cut", "npz_malformed"),
        ("npz", _npz(images=np.zeros((2, 4, 4), np.uint8))[:-30], "npz_malformed"),
        ("npz", _npz(pictures=[1]), "missing_images"),
        ("npz", _npz(images=np.zeros((2, 4, 4), np.float32)), "images_shape"),
        ("npz", _npz(images=np.zeros((2, 4, 4, 2), np.uint8)), "images_shape"),
        ("conll", b"Aspirin\n", "conll_malformed"),
        ("conll", b"\xff\tO\n", "not_utf8"),
    ],
)
def test_refuses_a_damaged_file_naming_it(tmp_path, format_, data, code):
    assert _code(tmp_path, "data.bin", format_, data) == code


def test_a_malformed_line_is_named(tmp_path):
    with pytest.raises(DataError, match="line 3: 1 cells under 2 columns"):
        _read(tmp_path, "d.csv", "csv", b"age,label\n1,yes\n2\n")


def test_a_file_separated_by_semicolons_is_recognised(tmp_path):
    with pytest.raises(DataError, match="save with commas"):
        _read(tmp_path, "d.csv", "csv", b"age;label\n1,5;yes\n")


def test_refuses_object_arrays_so_that_no_pickle_is_ever_opened(tmp_path):
    images = np.zeros((1, 4, 4), np.uint8)
    wanted = _npz(images=images, label=np.array([{"a": 1}], dtype=object))
    assert _code(tmp_path, "a.npz", "npz", wanted) == "npz_malformed"
    single = io.BytesIO()
    np.save(single, images)
    assert _code(tmp_path, "b.npz", "npz", single.getvalue()) == "npz_malformed"


def test_npz_gives_scaled_images_and_columns_of_equal_length(tmp_path):
    data = _npz(images=np.zeros((2, 8, 8), np.uint8), label=["yes", "no"], other=[1, 2, 3])
    raw = _read(tmp_path, "set.npz", "npz", data)
    assert raw.images is not None
    assert raw.images.shape == (2, 16, 16, 1)
    assert raw.columns == {"label": ("yes", "no"), "part": ("set", "set")}


def test_a_folder_of_npz_files_is_read_in_name_order_with_the_stem_as_part(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "b.npz").write_bytes(_npz(images=np.full((1, 16, 16, 3), 9, np.uint8)))
    (folder / "a.npz").write_bytes(_npz(images=np.full((2, 16, 16), 7, np.uint8)))
    (folder / "README.md").write_text("not data")
    raw = read(SiteData(format="npz", path="set"), tmp_path, WANTED, 16)
    assert raw.columns["part"] == ("a", "a", "b")
    assert raw.images is not None
    assert raw.images.shape == (3, 16, 16, 3)
    assert raw.images[:, 0, 0].tolist() == [[7] * 3, [7] * 3, [9] * 3]
    assert [name for name, _ in raw.digests] == ["a.npz", "b.npz"]


def test_conll_reads_tabs_and_spaces_and_keeps_sentences_apart(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.conll").write_text("Aspirin\tB-Drug\n.\tO\n\n\nhelps NN O\n")
    (folder / "devel.tsv").write_text("x O\r\ny I-Drug\r\n")
    raw = read(SiteData(format="conll", path="corpus"), tmp_path, WANTED, None)
    assert raw.words == (("x", "y"), ("Aspirin", "."), ("helps",))
    assert raw.tags == (("O", "B-Drug"), ("B-Drug", "O"), ("O",))
    assert raw.columns == {"part": ("devel", "train", "train")}


def test_documents_are_numbered_where_the_file_marks_them():
    text = b"-DOCSTART-\tO\n\na\tO\n\nb\tO\n-DOCSTART-\tO\nc\tO\n"
    assert read_conll(text, "x").documents == (1, 1, 2)
    assert read_conll(b"a\tO\n", "x").documents == (0,)


@pytest.mark.parametrize(
    ("tags", "normal"),
    [
        ("I-A I-A O I-B", "B-A I-A O B-B"),  # IOB
        ("I-A B-A I-A", "B-A B-A I-A"),  # IOB, touching entities
        ("B-A I-A O B-B", "B-A I-A O B-B"),  # IOB2 stays
        ("B-A I-B", "B-A B-B"),
        ("B_A I_A", "B-A I-A"),
        ("S-A x", "S-A x"),  # for the schema to refuse
    ],
)
def test_tags_become_iob2(tags, normal):
    assert to_iob2(tags.split()) == tuple(normal.split())


def test_rename_maps_the_hospitals_columns_to_the_federations(tmp_path):
    raw = _read(tmp_path, "d.csv", "csv", b"alter,label\n1,yes\n", rename={"alter": "age"})
    assert raw.columns == {"age": ("1",), "label": ("yes",)}


@pytest.mark.parametrize(
    ("rename", "code"),
    [
        ({"alder": "age"}, "rename_missing_column"),
        ({"alter": "label"}, "rename_collision"),
        ({"alter": "age", "label": "age"}, "rename_collision"),
    ],
)
def test_refuses_a_rename_that_does_not_fit(tmp_path, rename, code):
    data = b"alter,label\n1,yes\n"
    assert _code(tmp_path, "d.csv", "csv", data, rename=rename) == code


@pytest.mark.parametrize(
    ("path", "format_", "code"),
    [
        ("nothing.csv", "csv", "missing_file"),
        ("empty", "conll", "empty_folder"),
        ("empty", "csv", "folder_not_allowed"),
    ],
)
def test_refuses_a_path_without_data(tmp_path, path, format_, code):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        read(SiteData(format=format_, path=path), tmp_path, WANTED, None)
    assert caught.value.code == code


def _png(mode: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3)]
)
def test_grey_images_stay_one_channel_and_colour_three(mode, channels):
    assert decode(_png(mode), 16).shape == (16, 16, channels)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_images_that_would_be_changed_silently_or_fill_the_memory():
    with pytest.raises(UnreadableImageError, match="8 bits"):
        decode(_png("I;16"), 16)
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode(_png("1", (MAX_PIXELS // 1000 + 1, 1000)), 16)
    with pytest.raises(UnreadableImageError):
        decode(_png("L")[:40], 16)
