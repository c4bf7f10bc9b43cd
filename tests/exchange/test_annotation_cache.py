"""Annotation files as arrays: what they hold, and the cache that large ones are mapped from."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from filelock import FileLock, Timeout
from fsspec.implementations.memory import MemoryFileSystem

from exchange import annotation_reader, annotations, arrays, files
from exchange.annotations import AnnotationFile, join, read_annotations
from exchange.errors import UserError
from tools import cache

_MASK = np.zeros((6, 8), np.uint8, order="F")
_MASK[2:5, 1:7] = 1
_SEGMENTATIONS = [
    [[1, 2, 7, 2.5, 7, 5.123456789012345], [1, 1, 2, 2], []],
    {"size": [6, 8], "counts": coco_mask.encode(_MASK)["counts"].decode()},
    {"size": [6, 8], "counts": [8, 3, 3, 3, 31]},
    [[0, 0, 1, 1]],
    [[0.1, 0, 1, 1, 0, 1]],
]
_OPTIONAL = [
    {"id": 2**53 + 1, "area": 7},
    {"iscrowd": 1, "id": 0},
    {"iscrowd": False, "difficult": 1, "area": 0.1},
]
_OPTIONAL += [{"bbox": [0.1, 2, 6.5, 3], "id": 9, "caption": "café \ud83d\ude00"}, {}]
CONTENT = {
    "info": {"year": 2020},
    "annotations": [
        {"image_id": (70, 4, 70, 2**60, 4)[i], "category_id": (90, 7, 7, 12, 90)[i], "segmentation": s, **o}
        for i, (s, o) in enumerate(zip(_SEGMENTATIONS, _OPTIONAL, strict=True))
    ]
    + [{"image_id": 4, "category_id": 12, "bbox": [1, 1, 0, 0]}]
    + [{"image_id": 4, "category_id": 12, "segmentation": []}],
    "images": [
        {"id": 70, "height": 6, "width": 8, "file_name": "ä/70.png", "neg_category_ids": [7, 12]},
        {"id": 2**60, "height": 6, "width": 8, "coco_url": "http://x/y/val2017/5.jpg", "pos_category_ids": [90]},
        {"id": 4, "height": 6, "width": 8, "file_name": "4.png", "not_exhaustive_category_ids": []},
    ],
    "categories": [{"id": 90, "name": "ninety", "synset": "n"}, {"id": 7, "name": "seven"}, {"id": 12, "name": "ü"}],
}  # fmt: skip


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Of an annotation file that is worth an entry in a cache of its own."""
    monkeypatch.setenv("MRCA_CACHE", str(tmp_path / "not/there/cache"))
    monkeypatch.setattr(arrays, "_SMALLEST", 0)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    return str(path)


@pytest.fixture
def readings(monkeypatch):
    """Paths of the files that were read and not mapped."""
    paths, read_into = [], annotations.read_into

    def counted(path, writer):
        paths.append(path)
        read_into(path, writer)

    monkeypatch.setattr(annotations, "read_into", counted)
    return paths


def assert_is(file: AnnotationFile, content: dict) -> None:
    """Each value of the records is what the arrays hold."""
    images, ids = content["images"], [image["id"] for image in content["images"]]
    assert file.categories == sorted(content["categories"], key=lambda c: c["id"])
    assert file.image_ids.tolist() == ids
    assert file.image_sizes.tolist() == [[image["height"], image["width"]] for image in images]
    names = [i.get("file_name", "/".join(i.get("coco_url", "").split("/")[-2:])) for i in images]
    assert file.file_names() == names
    for field in annotation_reader.ID_LISTS:
        assert file.id_lists(field) == [image.get(field, []) for image in images]
    for index, record in enumerate(content["annotations"]):
        assert ids[file.object_images[index]] == record["image_id"]
        assert file.category_ids[file.object_classes[index]] == record["category_id"]
        assert file.object_id(index) == record.get("id")
        np.testing.assert_array_equal(file.boxes[index], record.get("bbox", [np.nan] * 4))
        np.testing.assert_array_equal(file.areas[index], record.get("area", np.nan))
        assert file.crowd[index] == record.get("iscrowd", 0)
        assert file.difficult[index] == record.get("difficult", 0)
        assert file.segmentation(index) == record.get("segmentation")
    assert len(file.object_images) == len(content["annotations"])
    assert file.enclosing().tolist() == [True, True, True, False, True, False, False]


@pytest.mark.parametrize(
    "way",
    ["decoded", "small", "first", "mapped", "a record at a time", "half a surrogate", "surrogates as bytes"],
)
def test_the_arrays_hold_what_the_file_says(way, path, monkeypatch):
    if way == "small":
        monkeypatch.setattr(arrays, "_SMALLEST", 1 << 20)
    if way == "a record at a time":
        monkeypatch.setattr(annotation_reader, "_PIECE", 0)
    if way == "mapped":
        read_annotations(path)
    if way == "half a surrogate":  # msgspec refuses it, also where nobody looks at it
        Path(path).write_text(json.dumps(CONTENT | {"info": {"by": "\ud800"}}).replace("caf", "\\ud800"))
    if way == "surrogates as bytes":
        Path(path).write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode(errors="surrogatepass"))
    parts = {part: CONTENT[part] for part in ("images", "annotations", "categories")}
    file = AnnotationFile.of_records(path, **parts) if way == "decoded" else read_annotations(path)
    assert_is(file, CONTENT)
    for name, (kind, _) in annotation_reader.SCHEMA.items():
        assert file.arrays[name].dtype == kind, name
    is_mapped = way not in ("decoded", "small")
    assert {isinstance(array.base, np.memmap) for array in file.arrays.values()} == {is_mapped}


def test_a_file_without_objects_or_images_has_empty_arrays(path):
    for annotations_of, images in ([], CONTENT["images"]), ([], []):
        Path(path).write_text(json.dumps(CONTENT | {"annotations": annotations_of, "images": images}))
        for _ in range(2):
            file = read_annotations(path)
            assert len(file.file_names()) == len(images) and file.image_counts().tolist() == [0, 0, 0]


def test_a_file_is_read_once_and_again_when_it_or_the_format_changes(path, readings, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(Path(path).parent)
    for name in (path, path, Path(path).name):
        read_annotations(name)
    assert readings == [path]
    assert caplog.messages == [f"reading {path}, for the next time into {arrays.entries()[0][0]}"]
    status = os.stat(path)
    other = json.dumps(CONTENT).replace("70.png", "71.png")  # of the same size
    Path(path + ".new").write_text(other)
    os.utime(path + ".new", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path + ".new", path)
    assert read_annotations(path).file_names()[0] == "ä/71.png"
    assert len(readings) == 2 and len(arrays.entries()) == 1
    monkeypatch.setattr(annotations, "FORMAT", "of a later release")
    read_annotations(path)
    assert len(readings) == 3


@pytest.mark.parametrize(("size", "is_kept"), [((4 << 20) - 1, False), (4 << 20, True)])
def test_a_file_is_worth_an_entry_from_four_megabytes_on(size, is_kept, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.json").write_bytes(json.dumps(CONTENT).encode().ljust(size))
    read_annotations(str(tmp_path / "a.json"))
    assert len(arrays.entries()) == is_kept


@pytest.mark.parametrize("name", ["categories", "image_names_ends", "boxes", "coordinates"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "other", "longer", "wider"])
def test_a_damaged_entry_is_made_again(damage, name, path, readings, caplog):
    read_annotations(path)
    ((folder, _),) = arrays.entries()
    file = folder / f"{name}.npy"
    good = np.load(file)
    if damage == "gone":
        file.unlink()
    elif damage in ("cut", "empty"):
        data = file.read_bytes()
        file.write_bytes(data[: 100 if damage == "cut" else 0])
    else:
        other = {
            "other": good.astype("f4"),
            "longer": np.concatenate([good, good[-1:]]),
            "wider": good[:, None],
        }
        np.save(file, other[damage])
    for _ in range(2):
        assert_is(read_annotations(path), CONTENT)
    assert len(readings) == 2
    assert caplog.text.count("is damaged") == 1


@pytest.mark.parametrize(
    "name", ["object_images", "object_classes", "polygons_ends", "coordinates_ends", "text_ends"]
)
@pytest.mark.parametrize("place", [99, -1])
def test_an_entry_that_points_to_nowhere_is_made_again(name, place, path, readings):
    read_annotations(path)
    ((folder, _),) = arrays.entries()
    values = np.load(folder / f"{name}.npy")
    values[0] = place
    np.save(folder / f"{name}.npy", values)
    assert_is(read_annotations(path), CONTENT)
    assert len(readings) == 2


@pytest.mark.parametrize("folder", ["file/below", "without locks"])
def test_a_cache_that_cannot_be_written_or_locked_is_done_without(
    folder, path, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MRCA_CACHE", str(tmp_path / folder))
    monkeypatch.setattr(arrays, "FileLock", Mock(side_effect=NotImplementedError))
    assert_is(read_annotations(path), CONTENT)
    assert caplog.text.count("set MRCA_CACHE to another folder") == len(caplog.records) == 1


@pytest.mark.parametrize("piece", [0, 1 << 20])
@pytest.mark.parametrize(
    ("number", "name"), [({"id": 33}, "annotation 33"), ({}, "record 7 of 'annotations'")]
)
def test_a_bad_file_leaves_no_entry_and_its_record_is_named_each_time(number, name, piece, path, monkeypatch):
    monkeypatch.setattr(annotation_reader, "_PIECE", piece)
    bad = CONTENT["annotations"] + [{"image_id": 4, "category_id": 8, **number}]
    Path(path).write_text(json.dumps(CONTENT | {"annotations": bad}))
    for _ in range(2):
        with pytest.raises(UserError, match=rf"a\.json: {name} has category_id 8, which is not in 'cat"):
            read_annotations(path)
        assert not arrays.entries()


def test_boxes_and_outlines_may_lie_as_far_outside_of_their_image_as_that_is_large():
    image, category = {"id": 1, "height": 6, "width": 8}, {"id": 1, "name": "a"}
    reach = {"bbox": [-8, -6, 24, 18], "segmentation": [[-8, -6, 16, -6, 16, 12]]}
    for field, value in reach.items():
        further = [value[0] - 0.1, *value[1:]] if field == "bbox" else [[-8, -6, 16, -6, 16, 12.1]]
        for kept, content in ((True, value), (False, further)):
            record = {"image_id": 1, "category_id": 1, field: content}
            with nullcontext() if kept else pytest.raises(UserError, match="further outside of its image"):
                AnnotationFile.of_records("a", images=[image], annotations=[record], categories=[category])


def test_a_box_of_three_numbers_is_named_also_beside_one_of_five():
    image, category = {"id": 1, "height": 6, "width": 8}, {"id": 1, "name": "a"}
    records = [{"image_id": 1, "category_id": 1, "bbox": box} for box in ([1, 1, 2], [2, 1, 1, 2, 2])]
    with pytest.raises(UserError, match=r"record 0 of .* has bbox \[1, 1, 2\], which is not a list of four"):
        AnnotationFile.of_records("a", images=[image], annotations=records, categories=[category])


def test_the_image_and_the_class_of_an_object_may_be_the_last_of_many():
    images = [{"id": n, "height": 6, "width": 8, "file_name": ""} for n in range(2**16 + 1)]
    categories = [{"id": n, "name": ""} for n in range(2**15 + 1)]
    last = {"image_id": 2**16, "category_id": 2**15}
    file = AnnotationFile.of_records("a", images=images, annotations=[last], categories=categories)
    assert (file.object_images.tolist(), file.object_classes.tolist()) == ([2**16], [2**15])


def test_while_one_process_reads_the_others_wait_and_then_map(path, readings, monkeypatch):
    read_into = annotations.read_into

    def looks_at_the_lock(path, writer):
        (lock,) = arrays.cache_folder().glob("*.lock")
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
        read_into(path, writer)

    class Late(FileLock):
        """Whoever gets it has waited until another process was done."""

        def __enter__(self):
            monkeypatch.setattr(arrays, "FileLock", FileLock)
            read_annotations(path)
            return super().__enter__()

    monkeypatch.setattr(annotations, "read_into", looks_at_the_lock)
    monkeypatch.setattr(arrays, "FileLock", Late)
    assert_is(read_annotations(path), CONTENT)
    assert readings == [path]


def test_a_killed_reader_leaves_nothing_that_is_taken_for_an_entry(path, monkeypatch, capsys):
    read_into = annotations.read_into

    def killed(path, writer):
        read_into(path, writer)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(annotations, "read_into", killed)
        patch.setattr(arrays.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            read_annotations(path)
    (left,) = (folder for folder, _ in arrays.entries())
    assert left.suffix == ".part"
    assert arrays.clear() > 0 and len(list(arrays.cache_folder().glob("*.lock"))) == 1  # that of the reader
    assert_is(read_annotations(path), CONTENT)
    assert [folder.suffix for folder, _ in arrays.entries()] == [""]


def test_the_cache_is_cleared_from_the_command_line(path, tmp_path, call, capsys, monkeypatch):
    file = read_annotations(path)
    call(cache)
    assert str(arrays.cache_folder()) in capsys.readouterr().out
    read_annotations(path)
    read_annotations(str(shutil.copy(path, tmp_path / "b.json")))
    size = sum(file.stat().st_size for folder, _ in arrays.entries() for file in folder.iterdir())
    assert arrays.clear() == size > 0 and not arrays.entries()
    read_annotations(path)
    call(cache, "--clear")
    assert capsys.readouterr().out.startswith("removed") and not arrays.entries()
    assert_is(file, CONTENT)  # who has it open keeps it
    monkeypatch.setattr(arrays, "entries", lambda: [("a", 3_000_000), ("b", 0)])
    monkeypatch.setattr(arrays, "clear", lambda: 3_000_000)
    call(cache)
    call(cache, "--clear")
    assert capsys.readouterr().out == "       3 MB  a\n       0 MB  b\nremoved 3 MB\n"


def test_the_cache_is_below_home_unless_another_folder_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for named, folder in ((None, ".cache/mrca"), ("", ".cache/mrca"), ("~/x", "x")):
        monkeypatch.delenv("MRCA_CACHE", raising=False)
        if named is not None:
            monkeypatch.setenv("MRCA_CACHE", named)
        assert arrays.cache_folder() == Path("/home/me", folder)


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_the_record_that_lacks_what_each_must_have_is_named(field):
    record = {"image_id": 5, "category_id": 1}
    records = [record | {"id": 7}, {"id": 8, **{key: record[key] for key in record if key != field}}]
    content = {"images": [{"id": 5, "height": 6, "width": 8}], "categories": [{"id": 1, "name": "b"}]}
    with pytest.raises(UserError, match=f"annotation 8 has no '{field}'"):
        AnnotationFile.of_records("a", **content, annotations=records)


def test_the_first_image_without_a_name_and_the_first_annotation_without_a_field_are_named():
    images = [{"id": 5, "height": 6, "width": 8, "file_name": "a"}, {"id": 4, "height": 6, "width": 8}]
    record = {"image_id": 5, "category_id": 1, "bbox": [1, 1, 2, 2]}
    records = [{**record, "id": 8, "area": 3}, {**record, "id": 7, "area": 3}, {**record, "id": 9}]
    file = AnnotationFile.of_records(
        "a", images=images, annotations=records, categories=[{"id": 1, "name": "b"}]
    )
    with pytest.raises(UserError, match="^a: image 4 has no 'file_name': add it$"):
        file.file_names()
    with pytest.raises(UserError, match="^a: annotation 9 has no 'area', as it should: add it$"):
        file.require("bbox", "area", why=", as it should")


def test_joined_files_are_those_of_each_with_new_numbers_and_whole_paths(path, tmp_path, readings):
    second = {part: CONTENT[part][:2] for part in ("images", "annotations")} | {
        "categories": CONTENT["categories"]
    }
    second["annotations"] = [{**record, "image_id": 70} for record in second["annotations"]]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.json").write_text(json.dumps(second))
    first, other = read_annotations(path), read_annotations(str(tmp_path / "b/a.json"))
    parts = [(first, "/a/"), (other, "s3://b"), (other, "/d")]
    images, records = [], []
    for content, folder in ((CONTENT, "/a/"), (second, "s3://b/"), (second, "/d/")):
        places = {
            image["id"]: len(images) + number for number, image in enumerate(content["images"], start=1)
        }
        for image, name in zip(content["images"], ["ä/70.png", "val2017/5.jpg", "4.png"], strict=False):
            images.append({**image, "id": places[image["id"]], "file_name": folder + name})
        for record in content["annotations"]:
            records.append({**record, "id": len(records) + 1, "image_id": places[record["image_id"]]})
    expected = AnnotationFile.of_records(
        "x", images=images, annotations=records, categories=CONTENT["categories"]
    )
    for _ in range(2):
        joined = join(parts)
        assert joined.path == f"{path} + {other.path} + {other.path}"
        for name in annotation_reader.SCHEMA:
            np.testing.assert_array_equal(joined.arrays[name], expected.arrays[name], err_msg=name)
    assert len(arrays.entries()) == 3 and len(readings) == 2
    elsewhere = join([(file, "/c") for file, _ in parts])
    assert elsewhere.file_names() == [f"/c/{n}" for file, _ in parts for n in file.file_names()]


@pytest.mark.parametrize("tag", ["", "ETag", "etag", "md5Hash", "VersionId"])
def test_a_file_on_an_object_store_is_cached_by_what_its_driver_says_of_the_content(
    tag, path, readings, monkeypatch
):
    info = MemoryFileSystem.info

    def with_tag(self, path, **kwargs):
        return info(self, path, **kwargs) | {tag: str(self.modified(path))}

    monkeypatch.setattr(MemoryFileSystem, "info", with_tag)
    for name in ("70.png", "71.png"):
        files.write_bytes("memory://a.json", json.dumps(CONTENT).replace("70.png", name).encode())
        for _ in range(2):
            assert read_annotations("memory://a.json").file_names()[0] == f"ä/{name}"
    assert len(readings) == (2 if tag else 4) and len(arrays.entries()) == bool(tag)
