import dataclasses
import functools
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import MagicMock, Mock, call

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import ExifTags, Image

from diSegmenter.pool import add, foreign
from diSegmenter.pool.add import import_round
from diSegmenter.pool.drop import drop
from diSegmenter.pool.foreign import ForeignInstance, read_coco, read_folders, read_xpaste
from diSegmenter.pool.move import merge, pack
from diSegmenter.pool.prune import prune_dropped
from exchange import files
from exchange.annotations import read_annotations
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.images import BadImage, decode_rgba
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import CATEGORIES, disc_image, png

IDS = {category["name"]: category["id"] for category in CATEGORIES}


def disc_rgba(radius, halo=0):
    image = disc_image(radius)
    alpha = np.where(image[..., 1] < 255, 255, halo).astype(np.uint8)
    return np.dstack([image, alpha])


def imported(layout, instances):
    count, present, left_out = import_round(layout, instances, CATEGORIES, "test")
    assert not present
    index = PoolIndex(layout, layout.pool_rounds())
    assert len(index) == count
    assert read_annotations(layout.pool_categories()).categories == CATEGORIES
    assert files.exists(layout.annotations_done(0)) and not files.exists(layout.pool_parts(0))
    return index, [decode_rgba(index.read(row), "") for row in range(count)], left_out


def test_x_pastes_three_kinds_of_paths_come_in(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(add, "_PART", 2)
    folder = str(tmp_path / "xpaste")
    clean = disc_rgba(6, halo=90)
    files.write_bytes(f"{folder}/images/0.png", png(clean))
    files.write_bytes(f"{folder}/images/1.png", png(disc_image(9)))
    mask = disc_rgba(9, halo=120)[..., 3].clip(max=200)
    mask[0, 0] = 255  # a speck, which X-Paste leaves out, too
    files.write_bytes(f"{folder}/masks/1.png", png(mask))
    files.write_bytes(f"{folder}/images/2.png", png(disc_rgba(4, halo=128)))
    pool = {"0": ["*images/0.png"], "1": ["images/1.png|masks/1.png", f"{folder}/images/2.png"]}
    files.write_json(f"{folder}/LVIS_instance_pools.json", pool)
    instances = read_xpaste(f"{folder}/LVIS_instance_pools.json", folder, sorted(IDS.values()))
    index, cutouts, left_out = imported(layout, instances)
    assert not left_out and index.category_ids.tolist() == [3, 7, 7]
    np.testing.assert_array_equal(cutouts[0], clean)  # cropped already, as its star says: taken as it is
    for cutout, radius, opaque in zip(cutouts[1:], (9, 4), (200, 255), strict=True):
        assert cutout.shape == (2 * radius + 1, 2 * radius + 1, 4)  # the halo is cut off
        assert set(np.unique(cutout[..., 3])) == {0, opaque}  # as soft as it was


def test_paths_of_x_paste_are_below_the_root_unless_they_are_whole(tmp_path, monkeypatch):
    read = []
    images = {"/c.png": np.full((9, 8, 4), 255, np.uint8)}
    image = np.full((8, 9, 4), 255, np.uint8)  # as many pixels
    monkeypatch.setattr(foreign, "read_rgba", lambda path: read.append(path) or images.get(path, image))
    path = str(tmp_path / "pool.json")
    files.write_json(path, {"0": ["*a.png", "s3://bucket/b.png", "/c.png|d.png"]})
    for instance in read_xpaste(path, "s3://theirs/", [3]):
        with nullcontext() if "|" not in instance.origin else pytest.raises(BadImage, match="differ in size"):
            instance.load()
    assert read == ["s3://theirs/a.png", "s3://bucket/b.png", "/c.png", "s3://theirs/d.png"]


def test_a_folder_per_class_comes_in(layout, tmp_path):
    root = str(tmp_path / "folders")
    files.write_bytes(f"{root}/red disc/b.PNG", png(disc_rgba(5)))
    files.write_bytes(
        f"{root}/blue_disc/a.webp", encode_cutout(disc_image(7), disc_rgba(7)[..., 3], [0, 0, 48, 40])
    )
    files.write_bytes(f"{root}/blue_disc/notes.txt", b"hello")
    index, cutouts, left_out = imported(layout, read_folders(root, IDS))
    assert index.category_ids.tolist() == [7, 3] and not left_out
    assert [cutout.shape[0] for cutout in cutouts] == [15, 11]
    assert (index[1].objects, index[1].model, index[1].prompt) == (1, "test", f"{root}/red disc/b.PNG")


def test_the_objects_of_a_coco_file_come_in_but_no_crowds(layout, tmp_path):
    root = str(tmp_path / "coco")
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    files.write_bytes(f"{root}/a.png", png(picture))
    halves = [[9.6, 4.4, 14, 4, 14, 13, 10, 13], [15, 4, 19, 4, 19, 13, 15, 13]]
    outlines = [*halves, [1, 1, 7, 2]]  # the last one encloses nothing
    square = {"id": 8, "image_id": 5, "category_id": 1, "segmentation": outlines}
    crowd = {**square, "id": 2, "iscrowd": 1}
    plain = {"size": [30, 40], "counts": [33, 4, 26, 4, 26, 4, 1103]}
    compressed = {**plain, "counts": coco_mask.frPyObjects(plain, 30, 40)["counts"].decode()}
    runs, text = ({**square, "id": 9 + n, "segmentation": s} for n, s in enumerate((plain, compressed)))
    boxed = {"id": 11, "image_id": 5, "category_id": 1, "bbox": [1, 1, 9, 9]}
    content = {
        "images": [
            {"id": id_, "file_name": name, "width": 40, "height": 30}
            for id_, name in ((2, "other.png"), (5, "a.png"))
        ],
        "annotations": [crowd, square, runs, text, boxed, square | {"id": 12, "image_id": 7}],
        "categories": [{"id": 1, "name": "blue_disc"}],
    }
    content["images"].append({"id": 7, "file_name": "wide.png", "width": 16_384, "height": 30})
    files.write_json(f"{root}/coco.json", content)
    index, cutouts, left_out = imported(layout, read_coco(f"{root}/coco.json", root, IDS))
    instance, *others = index
    assert left_out.pop() == f"{root}/wide.png has a side above 16383 pixels"  # nobody looks for it
    assert [other.bbox for other in others] == [[1, 3, 3, 4]] * 2
    assert [sentence.partition(" shows no object")[0] for sentence in left_out] == [f"{root}/coco.json#11"]
    assert instance.category_id == 7 and instance.bbox == [10, 4, 10, 10]
    assert (instance.width, instance.height, instance.prompt) == (40, 30, f"{root}/coco.json#8")
    np.testing.assert_array_equal(cutouts[0][..., :3], picture[4:14, 10:20])
    assert (cutouts[0][..., 3] == 255).all()
    with pytest.raises(UserError, match=r"coco\.json has the category 'blue_disc', which the data set lacks"):
        read_coco(f"{root}/coco.json", root, {"red disc": 3})  # before the first of them comes in
    content["images"][1]["file_name"] = "../coco/a.png"
    files.write_json(f"{root}/coco.json", content)
    with pytest.raises(UserError, match=r"coco\.json: annotation 8: .*leads out"):
        list(read_coco(f"{root}/coco.json", root, IDS))


def test_a_picture_is_read_once_for_all_of_its_objects_wherever_the_file_lists_them(
    layout, tmp_path, monkeypatch
):
    read, read_upright = [], foreign.read_upright
    monkeypatch.setattr(
        foreign, "read_upright", lambda *picture: read.append(picture) or read_upright(*picture)
    )
    images = [{"id": id_, "file_name": f"{id_}.png", "width": 48, "height": 40} for id_ in range(9, 0, -1)]
    for image in images:
        files.write_bytes(f"{tmp_path}/{image['file_name']}", png(disc_image(image["id"])))
    square = {"category_id": 1, "segmentation": [[9, 4, 19, 4, 19, 13]]}
    annotations = [{**square, "id": n, "image_id": 1 + 7 * n % 9} for n in range(1, 37)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blue_disc"}]}
    files.write_json(f"{tmp_path}/coco.json", content)
    found = list(read_coco(f"{tmp_path}/coco.json", str(tmp_path), IDS))
    for instance in found:
        image_id = 1 + 7 * int(instance.origin.partition("#")[2]) % 9
        np.testing.assert_array_equal(instance.load()[..., :3], disc_image(image_id))
    assert len(found) == 36 and len(read) == len(set(read)) == 9
    monkeypatch.setattr(foreign, "_PICTURES", 9)  # however late one of the threads is
    again = read_coco(f"{tmp_path}/coco.json", str(tmp_path), IDS)
    assert import_round(layout, again, CATEGORIES, "test")[0] == 36 and len(read) == 18


def test_a_picture_that_one_thread_reads_is_waited_for_by_another(monkeypatch):
    asked, read, both_ask = [], [], threading.Event()

    class Watched:
        def __init__(self):
            self.lock = threading.Lock()

        def __enter__(self):
            asked.append(self)
            if len(asked) == 2:
                both_ask.set()
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    def read_upright(*picture):
        read.append(picture)
        assert both_ask.wait(60)
        return np.zeros((30, 40, 3), np.uint8)

    monkeypatch.setattr(foreign, "Lock", Watched)
    monkeypatch.setattr(foreign, "read_upright", read_upright)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(foreign._reader(), ["a.png"] * 2, [(30, 40)] * 2)
    assert first is second and read == [("a.png", (30, 40))]


def test_an_object_of_a_lying_photograph_is_cut_out_where_it_is_annotated_and_of_another_size_left_out(
    layout, tmp_path
):
    exif, upright = Image.Exif(), np.zeros((30, 40, 3), np.uint8)
    exif[ExifTags.Base.Orientation] = 6
    upright[4:14, 10:20] = 255
    for name, pixels in (("a.png", upright), ("b.png", upright[:20])):
        Image.fromarray(np.rot90(pixels)).save(tmp_path / name, exif=exif)
    square = {"category_id": 1, "segmentation": [[10, 4, 19, 4, 19, 13, 10, 13]]}
    content = {
        "images": [{"id": n, "file_name": f"{'ab'[n]}.png", "width": 40, "height": 30} for n in (0, 1)],
        "annotations": [{**square, "id": n, "image_id": n} for n in (0, 1)],
        "categories": [{"id": 1, "name": "blue_disc"}],
    }
    files.write_json(str(tmp_path / "coco.json"), content)
    _, (cutout,), left_out = imported(layout, read_coco(str(tmp_path / "coco.json"), str(tmp_path), IDS))
    assert cutout.shape == (10, 10, 4) and (cutout == 255).all()
    assert "b.png has 40 x 20 pixels, not 40 x 30 as annotated" in left_out[0]


def test_what_does_not_decode_or_shows_nothing_is_left_out_and_named(layout, tmp_path):
    root = str(tmp_path / "folders")
    files.write_bytes(f"{root}/red disc/a.png", png(disc_rgba(5)))
    files.write_bytes(f"{root}/red disc/b.png", png(disc_rgba(5))[:50])
    files.write_bytes(f"{root}/red disc/c.png", png(np.zeros((9, 9, 4), np.uint8)))
    index, _, left_out = imported(layout, read_folders(root, IDS))
    assert len(index) == 1 and len(left_out) == 2
    assert "b.png does not decode" in left_out[0] and "c.png shows no object" in left_out[1]
    files.remove(f"{root}/red disc/a.png")
    with pytest.raises(UserError, match=r"none of 2 instances can be imported: /.*b.png does"):
        import_round(layout, read_folders(root, IDS), CATEGORIES, "test")
    assert layout.pool_rounds() == [0] and not files.exists(layout.pool_parts(1))


def test_a_further_import_is_a_round_of_its_own_that_tells_of_cut_outs_when_they_are_on_the_disk(
    layout, monkeypatch
):
    told = []
    monkeypatch.setattr(
        files, "flush_all", lambda: told.append(files.list_dir(layout.pool("index/rd00.parts")))
    )
    for source in ("test", "other"):
        import_round(layout, discs([])[:1], CATEGORIES, source)
    assert PoolIndex(layout, layout.pool_rounds()).column("round").tolist() == [0, 1] and told == [[], []]
    files.remove(layout.pool_index(0))
    import_round(layout, discs([])[:1], CATEGORIES, "test")
    assert layout.pool_rounds() == [1, 2]  # nothing is overwritten


def test_of_an_import_that_is_called_again_only_what_is_new_comes(layout, monkeypatch, capsys):
    monkeypatch.setattr(add, "_PART", 2)
    first, sentence = discs([]), "number 4 does not decode"
    assert import_round(layout, first[:5], CATEGORIES, "test") == (4, 0, [sentence])
    drop(layout, [layout.instance_name(0, 3, 0)], [], [], CATEGORIES)
    prune_dropped(layout, 0)
    pack(layout, 0)
    assert import_round(layout, first[:5], CATEGORIES, "test") == (0, 4, [sentence])
    assert layout.pool_rounds() == [0] and not files.exists(layout.pool_parts(1))
    again = [
        *(dataclasses.replace(instance, load=lambda: disc_rgba(20)) for instance in first[3:5]),
        dataclasses.replace(first[1], category_id=3),
        *first[:3],
        first[6],
    ]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(add, "join_parts", Mock(side_effect=Killed))
        import_round(layout, again, CATEGORIES, "test")
    capsys.readouterr()
    assert import_round(layout, again, CATEGORIES, "test") == (4, 3, [])
    assert "import: 100%" in capsys.readouterr().err
    came = PoolIndex(layout, [1])
    assert came.column("prompt").tolist() == ["disc 3", "disc 4", "disc 1", "disc 6"]
    assert came.category_ids.tolist() == [7, 3, 3, 3]


def test_what_comes_in_beside_an_import_is_a_round_of_its_own(layout, monkeypatch):
    @contextmanager
    def late(layout, work):
        monkeypatch.undo()
        import_round(layout, discs([]), CATEGORIES, "the one that was at it until now")
        yield
        assert files.exists(layout.annotations_done(1))

    monkeypatch.setattr(add, "only_one", late)
    import_round(layout, discs([]), CATEGORIES, "test")
    assert layout.pool_rounds() == [0, 1]
    with only_one(layout, "import"), pytest.raises(UserError, match="'import' already"):
        merge(layout, layout, CATEGORIES)


class Killed(BaseException):
    """Nothing of ours catches it, as nothing catches SIGKILL."""


def discs(loaded):
    """Seven instances, one of which does not decode; ``loaded`` gets the numbers of those that are looked at."""

    def load(number):
        loaded.append(number)
        if number == 4:
            raise BadImage("number 4 does not decode")
        return disc_rgba(3 + number)

    return [
        ForeignInstance(f"disc {n}", CATEGORIES[n % 2]["id"], functools.partial(load, n)) for n in range(7)
    ]


def files_below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Seven cut-outs but one, four parts of three files each, outlines, index, categories, marker.
@pytest.mark.parametrize("kill", range(1, 6 + 4 * 3 + 4 + 1))
def test_an_import_killed_after_any_file_goes_on_behind_its_last_whole_part(
    kill, layout, tmp_path, monkeypatch
):
    monkeypatch.setattr(add, "_PART", 2)
    undisturbed = RunLayout(str(tmp_path / "undisturbed"))
    expected = import_round(undisturbed, discs([]), CATEGORIES, "test", workers=1)
    assert expected == (6, 0, ["number 4 does not decode"])
    written, move = itertools.count(1), os.replace

    def replace(source, target):
        move(source, target)
        if next(written) == kill:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        import_round(layout, discs([]), CATEGORIES, "test", workers=1)
    whole = len([name for name in files.list_dir(layout.pool_parts(0)) if name.endswith(".json")])
    finished = files.exists(layout.annotations_done(0))
    loaded = []
    again = import_round(layout, discs(loaded), CATEGORIES, "test", workers=1)
    assert again == ((0, 6, expected.left_out) if finished else expected)
    assert loaded == list(range(7))[0 if finished else 2 * whole :]
    import_round(layout, discs([]), CATEGORIES, "more", workers=1)
    import_round(undisturbed, discs([]), CATEGORIES, "more", workers=1)
    assert files_below(Path(layout.root) / "pool") == files_below(Path(undisturbed.root) / "pool")


def test_an_import_tells_of_each_instance_when_it_is_there_and_of_the_parts_that_are_at_once(
    layout, monkeypatch
):
    monkeypatch.setattr(add, "_PART", 3)
    monkeypatch.setattr(add, "tqdm", told := MagicMock())
    steps = told.return_value.__enter__.return_value.update
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(add, "join_parts", Mock(side_effect=Killed))
        import_round(layout, discs([]), CATEGORIES, "test")
    assert steps.call_args_list == [call()] * 7
    record = files.read_json(done := layout.pool_part_done(0, 0))
    assert record.pop("present") == 0  # which a release before did not count
    files.write_json(done, record)
    assert import_round(layout, discs([]), CATEGORIES, "test")[:2] == (6, 0)
    assert steps.call_args_list[7:] == [call(3), call(3), call(1)]


def test_parts_of_another_import_are_not_taken_for_this_one_s(layout, monkeypatch):
    monkeypatch.setattr(add, "_PART", 2)
    monkeypatch.setattr(add, "join_parts", lambda *arguments: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        import_round(layout, discs([]), CATEGORIES, "test")
    with pytest.raises(UserError, match=r"rd00\.parts holds a part of another import"):
        import_round(layout, discs([])[1:], CATEGORIES, "test")
    others = [dataclasses.replace(instance, category_id=7) for instance in discs([])]
    with pytest.raises(UserError, match=r"rd00\.parts holds a part of another import"):
        import_round(layout, others, CATEGORIES, "test")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"2": []}, "class index '2'"),
        ({"red": []}, "class index 'red'"),
        ({"²": []}, "class index '²'"),
        ({"0": [5]}, "which is not a path"),
        ([], "is not a pool of X-Paste"),
    ],
)
def test_a_pool_of_another_form_is_named(tmp_path, content, sentence):
    path = str(tmp_path / "pool.json")
    files.write_json(path, content)
    with pytest.raises(UserError, match=sentence):
        list(read_xpaste(path, str(tmp_path), [3, 7]))


def test_what_is_of_other_categories_than_the_pool_does_not_come_in(layout, tmp_path):
    files.write_bytes(f"{tmp_path}/red disc/a.png", png(disc_rgba(5)))
    instances = list(read_folders(str(tmp_path), IDS))
    import_round(layout, instances, CATEGORIES[1:], "test")
    other = [CATEGORIES[1] | {"name": "crane"}]
    for bring_in in (
        lambda: import_round(layout, instances, other, "test"),
        lambda: merge(layout, layout, other),
    ):
        with pytest.raises(UserError, match="category 7 of what comes in is 'crane', but 'blue_disc' in"):
            bring_in()
    assert layout.pool_rounds() == [0]
    import_round(layout, instances, [CATEGORIES[1] | {"image_count": 1}, CATEGORIES[0]], "more")
    assert read_annotations(layout.pool_categories()).categories == CATEGORIES


def test_a_folder_that_is_no_class_is_named(tmp_path):
    files.write_bytes(str(tmp_path / "folders/green disc/a.png"), b"")
    for names, said in ((IDS, "holds 'green disc', which is no category"), (IDS | {"green disc": 9}, None)):
        with nullcontext() if said is None else pytest.raises(UserError, match=said):
            list(read_folders(str(tmp_path / "folders"), names))
    with pytest.raises(UserError, match="holds no folder"):
        list(read_folders(str(tmp_path / "nothing"), IDS))
