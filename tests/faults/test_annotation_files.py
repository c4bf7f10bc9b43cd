"""Annotation files that nobody vouches for: one sentence that names file and record, or something safe to use."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.view import View, rasterize
from detectron2_ext.evaluation.pascal import OPEN_IMAGES, PascalTruth
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth
from diSegmenter.pool.foreign import read_coco
from exchange.annotations import AnnotationFile, read_annotations
from exchange.errors import UserError
from generator.plan import PromptBook
from tests.faults.mutations import FUZZING, memory_bounded, mutated_bytes, mutated_json

_MASK = np.zeros((6, 8), np.uint8, order="F")
_MASK[2:5, 1:7] = 1
_COMPRESSED = {"size": [6, 8], "counts": coco_mask.encode(_MASK)["counts"].decode()}
_RUNS = {"size": [6, 8], "counts": [8, 3, 3, 3, 31]}
_OBJECT = {"image_id": 3, "category_id": 2, "bbox": [1, 2, 6.5, 3], "area": 18.0, "iscrowd": 0}
_SIZE = {"height": 6, "width": 8}
_POLYGONS = [[1, 2, 7, 2.5, 7, 5], [1, 1, 2, 2]]
CONTENT = {
    "images": [
        {"id": 3, "file_name": "a.png", "neg_category_ids": [5], "pos_category_ids": [2], **_SIZE},
        {"id": 4, "coco_url": "http://x/y/b.jpg", "not_exhaustive_category_ids": [2], **_SIZE},
    ],
    "annotations": [
        {**_OBJECT, "id": 7, "segmentation": _POLYGONS},
        {**_OBJECT, "id": 8, "segmentation": _COMPRESSED, "difficult": 1},
        {**_OBJECT, "id": 9, "segmentation": _RUNS, "iscrowd": 1},
        {**_OBJECT, "id": 10, "segmentation": []},
    ],
    "categories": [
        {"id": 2, "name": "cat", "frequency": "r", "synonyms": ["cat", "puss"], "def": "pet"},
        {"id": 5, "name": "dog", "frequency": "f"},
    ],
}


def use(path: str) -> None:
    """Everything that training, evaluation, stage 1 and the import of stage 2 do with an annotation file."""
    annotations = read_annotations(path)
    annotations.instance_counts(), annotations.image_counts()
    for category in annotations.categories:
        PromptBook(["a {synonym}, {definition}"], "clean").prompt(category, 5)
    list(read_coco(path, "/", {name: 1 for name in annotations.category_names.values()}))
    dataset = DetectionDataset(annotations, "/")
    for index in range(len(dataset)):
        record = dataset.record(index)
        size = record.height, record.width
        if math.prod(size) < 1e6:  # an image file of the same size has been read before
            for number in range(len(record.boxes)):
                rasterize(dataset.segmentation(record.first_object + number), View(1.0, size, (0, 0), size))
    for truth in (CocoTruth(annotations), PascalTruth(annotations, OPEN_IMAGES)):
        truth.score(_found(dataset))


def _found(dataset: DetectionDataset) -> Predictions:
    """An object of one pixel in each image."""
    masks = [{"size": size, "counts": [0, 1, math.prod(size) - 1]} for size in dataset.sizes.tolist()]
    number = len(masks) if dataset.num_classes else 0
    return Predictions.from_json(
        [
            {
                "image_id": image_id,
                "category_id": int(dataset.category_ids[0]),
                "score": 0.5,
                "bbox": [0, 0, 1, 1],
                "segmentation": {
                    "size": mask["size"],
                    "counts": coco_mask.frPyObjects(mask, *mask["size"])["counts"].decode(),
                },
            }
            for image_id, mask in zip(dataset.image_ids.tolist()[:number], masks, strict=False)
        ],
        dataset.category_ids,
    )


def read_bounded(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with memory_bounded(len(data)):
        try:
            use(str(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a file that has been used once, so that all libraries are loaded."""
    path = tmp_path_factory.mktemp("set") / "annotations.json"
    path.write_text(json.dumps(CONTENT))
    use(str(path))
    return path


@FUZZING
@given(content=mutated_json(CONTENT))
@example(
    content=CONTENT | {"images": [CONTENT["images"][0] | {"file_name": "../a.png"}, CONTENT["images"][1]]}
)
def test_values_exchanged(content, path):
    read_bounded(path, json.dumps(content).encode())


@FUZZING
@given(data=mutated_bytes(json.dumps(CONTENT).encode()))
def test_bytes_exchanged(data, path):
    read_bounded(path, data)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 2e8, 0, 2e8, 2e8]],
        [[0, 0, 15_000, 15_000] * 200],
        [[0.5, 0.5] * 250_000],
        [[0, 0] * 1_500_000],
        {"counts": [400_000_000]},
        {"counts": [2**31, 2**31 - 1]},
        {"counts": "0" * 500_000},
        {"counts": "0" * 9_000_000},
    ],
    ids="far zigzag points endless-points run beyond runs endless-runs".split(),
)
def test_no_segmentation_takes_gigabytes(segmentation, path):
    content = copy.deepcopy(CONTENT)
    content["images"][0] |= {"height": 20_000, "width": 20_000}
    if isinstance(segmentation, dict):
        segmentation = {**segmentation, "size": [20_000, 20_000]}
    content["annotations"] = [{**_OBJECT, "id": 7, "segmentation": segmentation}]
    read_bounded(path, json.dumps(content, separators=(",", ":")).encode())


def of_object(segmentation: object, height: int, width: int) -> AnnotationFile:
    """One object with this segmentation, in an image of this size."""
    image = {"id": 3, "file_name": "a.png", "height": height, "width": width}
    record = {"image_id": 3, "category_id": 2, "id": 7, "segmentation": segmentation}
    return AnnotationFile.of_records(
        "a.json", images=[image], annotations=[record], categories=CONTENT["categories"]
    )


def test_the_largest_image_and_the_longest_segmentations_are_read_and_a_number_more_is_refused():
    height, width = 233, 2089 * 1103  # 2^29 - 1 pixels
    runs = coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    whole = {"size": [height, width], "counts": runs["counts"].decode()}
    assert of_object(whole, height, width).segmentation(0) == whole
    assert len(of_object([[1, 1] * (1 << 19)], 6, 8).polygons(0)[0]) == 1 << 20
    with pytest.raises(UserError, match="annotation 7 has .* more than 1048576 numbers"):
        of_object([[1, 1] * (1 << 18), [1, 1] * ((1 << 18) + 1)], 6, 8)
    single = {"size": [1024, 1025], "counts": [1] * (1 << 20)}
    single["counts"][0] += 1024
    assert len(of_object(single, 1024, 1025).arrays["runs"]) == 1 << 20
    with pytest.raises(UserError, match="has no 'counts' of 1 to 1048576 runs"):
        of_object({"size": [1024, 1025], "counts": [1] * (1 << 20) + [1024]}, 1024, 1025)


@pytest.mark.parametrize("longer", [0, 1])
def test_the_outlines_of_an_object_are_added_up_each_closed_and_the_ways_between_them_are_not(
    longer, tmp_path
):
    sides = [1 << 14] * 15 + [(1 << 14) + longer]  # there and back: 2^19 pixels together
    outlines = [[0, y := 15_000 * (n % 2), side, y, side, y] for n, side in enumerate(sides)]
    content = CONTENT | {"annotations": [{**_OBJECT, "id": 7, "segmentation": outlines}]}
    content["images"] = [{**image, "height": 20_000, "width": 20_000} for image in CONTENT["images"]]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    if not longer:
        assert len(read_annotations(str(path)).polygons(0)) == 16
    else:
        with pytest.raises(UserError, match="annotation 7 has .*outlines of more than 524288 pixels"):
            read_annotations(str(path))


# JSON values without a space in them. The object that gets them is the second one, the run lengths' image 6 x 8.
_BAD = {
    ("annotations", "segmentation", "that is neither a list of polygons nor run lengths"): '5 "text" null',
    ("annotations", "segmentation", "that holds something else than numbers in their place"): r"""
        [5] ["text"] [{}] [[1,2,"3",4,5,6]] [[1,[2],3,4,5,6]] {"size":[6,8],"counts":[48.0]}
        {"size":[6,8],"counts":["48"]} {"size":[6,8],"counts":[18446744073709551616]}""",
    ("annotations", "segmentation", "that has an x without a y in a polygon"): "[[1,2,3,4,5]]",
    (
        "annotations",
        "segmentation",
        "that lies further outside of its image than that is large, or holds NaN",
    ): """
        [[0,0,1,1,2,1180591620717411303424]] [[0,0,1,1,1e9,1]]""",
    ("annotations", "segmentation", r"that has run lengths without the size of its image, \[6, 8\]"): """
        {} {"counts":[48]} {"size":6,"counts":[48]} {"size":[8,6],"counts":[48]} {"size":[6.0,8],"counts":[48]}""",
    ("annotations", "segmentation", "that has no 'counts' of 1 to 1048576 runs or characters"): """
        {"size":[6,8]} {"size":[6,8],"counts":[]} {"size":[6,8],"counts":""} {"size":[6,8],"counts":48}""",
    ("annotations", "segmentation", "that has runs that do not add up to its 6 x 8 pixels"): r"""
        {"size":[6,8],"counts":[49]} {"size":[6,8],"counts":[47]} {"size":[6,8],"counts":[8,-1,41]}
        {"size":[6,8],"counts":[9223372036854775807,9223372036854775807,50]}
        {"size":[6,8],"counts":"\u00e9"} {"size":[6,8],"counts":"\ud800"}
        {"size":[6,8],"counts":"oooooooo0"} {"size":[6,8],"counts":"`QPPPPP0"} {"size":[6,8],"counts":"P"}
        {"size":[6,8],"counts":"9OX1"}""",
    ("annotations", "bbox", "is not a list of four numbers"): '5 "1234" [1,2,3] [1,2,3,null]',
    ("annotations", "bbox", "with a negative side, or further outside of its image than that is large"): """
        [1,2,-3,4] [1,2,1e300,4] [1,2,3,1e19]""",
    (
        "annotations",
        "area",
        "is not a number of pixels from 0 up",
    ): 'null "5" -1 1180591620717411303424 1e999',
    ("annotations", "iscrowd", "is not a whole number from 0 to 1"): 'null 2 -1 "0" [] 0.0',
    ("annotations", "difficult", "is not a whole number from 0 to 1"): "2 0.5",
    ("annotations", "id", "is not a whole number from 0 to 9223372036854775807"): """
        null "8" -1 7.0 9223372036854775808 [] 12345678901234567890123456789012345678901234567890""",
    ("annotations", "image_id", "is not a whole number from 0 to 9223372036854775807"): """
        null "3" 3.0 18446744073709551616""",
    ("annotations", "image_id", "is not in 'images'"): "99 2",
    ("annotations", "category_id", "is not a whole number from 0 to 9223372036854775807"): """
        null "2" 18446744073709551616""",
    ("annotations", "category_id", "is not in 'categories'"): "99 3",
    ("images", "height", "is not a whole number from 1 to 536870911"): """
        -1 0 "6" 6.0 null 2147483648 18446744073709551616""",
    ("images", "height", "and width"): "268435456",
    ("images", "width", "is not a whole number from 1 to 536870911"): "0 8.0",
    ("images", "file_name", "is not a text that UTF-8 holds, without NUL"): r'5 null "\ud800" "a\u0000"',
    ("images", "coco_url", "is not a text that UTF-8 holds, without NUL"): r'5 "a\u0000"',
    ("images", "neg_category_ids", "is not a list of whole numbers"): """
        5 null ["2"] [[2]] [18446744073709551616]""",
    ("images", "pos_category_ids", "is not a list of whole numbers"): "[0.5]",
    ("images", "not_exhaustive_category_ids", "is not a list of whole numbers"): "[0.5]",
    ("categories", "name", "is not a text that UTF-8 holds, without NUL"): r'5 "\ud800" []',
    ("categories", "freebase_id", "is not a text that UTF-8 holds, without NUL"): "5",
    ("categories", "def", "is not a text that UTF-8 holds, without NUL"): "5",
    ("categories", "frequency", "is not 'r', 'c' or 'f'"): '"x" "" "rc" null []',
    ("categories", "id", "is not a whole number from 0 to 2147483647"): "-1 2147483648",
    ("categories", "synonyms", "is not a list of texts that UTF-8 holds"): '"cat" [5]',
}


@pytest.mark.parametrize(
    ("part", "field", "what", "value"), [(*key, text) for key in _BAD for text in _BAD[key].split()]
)
def test_a_bad_value_is_named_with_its_record(part, field, what, value, tmp_path):
    content = copy.deepcopy(CONTENT)
    record, kind = content[part][1], part.removesuffix("s").replace("ie", "y")
    name = f"{kind} {record['id']}"
    record[field] = json.loads(value)
    if field == "id":
        name = (
            f"record 1 of '{part}'" if type(record["id"]) is not int else f"{kind} {str(record['id'])[:40]}"
        )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content).replace("Infinity", "1e999"))
    sentence = rf"annotations.json: {name} has .*{field}.*{what}: correct it or remove the {kind}"
    with pytest.raises(UserError, match=sentence):
        read_annotations(str(path))


def decoded(text: str) -> list[int]:
    """Runs of COCO's compressed form, a character at a time: five bits each, 32 for more to come, the last one's 16
    for a negative number; from the fourth run on, what is added to the run before the last."""
    runs, value, place = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << place
        place += 5
        if not bits & 32:
            value -= (1 << place) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return runs


@FUZZING
@given(data=st.data())
def test_compressed_runs_are_accepted_exactly_where_they_add_up(data, tmp_path):
    content = copy.deepcopy(CONTENT)
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    content["images"][0] |= {"height": height, "width": width}
    content["annotations"], good = [], []
    for number in range(data.draw(st.integers(1, 5))):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        mask = np.asfortranarray(rng.random((height, width)) < rng.choice([0.001, 0.1, 1.0]), dtype=np.uint8)
        text = bytearray(coco_mask.encode(mask)["counts"])
        if data.draw(st.integers(0, 5)) == 0:
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(48, 79))
        runs = decoded(text.decode())
        good.append(min(runs) >= 0 and sum(runs) == height * width)
        segmentation = {"size": [height, width], "counts": text.decode()}
        content["annotations"].append(
            {"image_id": 3, "category_id": 2, "id": number, "segmentation": segmentation}
        )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    if all(good):
        assert len(read_annotations(str(path)).object_images) == len(good)
    else:
        with pytest.raises(UserError, match=f"annotation {good.index(False)} has .* do not add up"):
            read_annotations(str(path))
