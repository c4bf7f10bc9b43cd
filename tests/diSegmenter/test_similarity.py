import json
import logging
from collections.abc import Sequence
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from diSegmenter import real_objects, segmentAndFilter
from diSegmenter.build_similarity import build_similarity
from diSegmenter.real_objects import RealObjects
from diSegmenter.similarity import SURROUNDINGS, Framing, Similarity, load_image_encoder
from exchange import files
from exchange.annotations import read_annotations
from exchange.config import load_config
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import disc_image, generate, write_settings
from tests.diSegmenter.real_discs import framed, write_training_set

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path, foreground_folder, clip_folder):
    settings = {
        "CLIP_THRESHOLD": -100.0,
        "BATCH_SIZE": 4,
        "SIMILARITY_MODEL": clip_folder,
        "SIMILARITY_PADDING": 3,
    }
    path = write_settings(tmp_path, foreground_folder, clip_folder, **settings)
    write_training_set(tmp_path, [3] * 7 + [7] * 2)
    return path


@pytest.mark.parametrize("surroundings", ["blur", "white"])
@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_the_similarity_is_the_mean_cosine_with_the_real_objects_of_the_class(
    tmp_path, layout, config, clip_folder, surroundings, kind
):
    folder = clip_folder
    processor = AutoImageProcessor.from_pretrained(clip_folder)
    if kind == "dino":
        torch.manual_seed(1)
        folder = str(tmp_path / "dino")
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        }
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
        processor.save_pretrained(folder)
        exact = Dinov2Model.from_pretrained(folder).double().eval()
    else:
        exact = CLIPModel.from_pretrained(folder).double().eval().get_image_features
    options = {"MODEL": folder, "SURROUNDINGS": surroundings}
    cfg = load_config(
        config, [text for key, v in options.items() for text in (f"SEGMENTER.SIMILARITY_{key}", v)]
    )
    real = write_training_set(tmp_path, [3] * 7 + [7] * 2)
    images = [disc_image(8), disc_image(5, size=(30, 64)), disc_image(12, ink=(0, 0, 250)), disc_image(3)]
    alphas = [np.where(image[..., 1] < 255, 255, 0).astype(np.uint8) for image in images]
    compare = build_similarity(cfg, layout, real, str(tmp_path), CPU)
    found = compare(images, alphas, [3, 7, 7, 9])  # no 9 is real
    assert compare(images[3:], alphas[3:], [9]) == [None]

    def feature(picture):
        with torch.no_grad():
            pixels = processor(images=[picture], return_tensors="pt")["pixel_values"].double()
            vector = exact(pixel_values=pixels).pooler_output[0].numpy()
        return vector / np.linalg.norm(vector)

    features = {3: [], 7: []}
    for number, category in enumerate([3] * 7 + [7] * 2):
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"{number}.png")))
        box = real.boxes[number].astype(int).tolist()
        inside = np.zeros(pixels.shape[:2], bool)
        inside[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
        if number % 3 == 0:
            inside = (pixels == ((200, 30, 30) if category == 3 else (30, 30, 200))).all(-1)
        features[category].append(feature(framed(pixels, inside, box, 3, surroundings)))
    for image, alpha, category, similarity in zip(images, alphas, [3, 7, 7], found, strict=False):
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        own = feature(framed(image, alpha > 0, box, 3, surroundings))
        expected = np.mean([own @ other for other in features[category]])
        assert similarity == pytest.approx(
            expected, abs=2e-4 if surroundings == "blur" else 1e-5
        )  # means of .5
    assert found[3] is None and len({round(value, 3) for value in found[:3]}) == 3


def test_soft_edges_are_looked_at_too_and_what_is_faint_everywhere():
    boxes, alpha = [], np.zeros((20, 30), np.uint8)
    alpha[4:9, 6:20], alpha[5:7, 8:12] = 1, 255

    def frame(image: np.ndarray, opacity: np.ndarray, box: Sequence[int]) -> np.ndarray:
        boxes.append(tuple(box))
        return image

    compare = Similarity(lambda pictures: np.ones((len(pictures), 1)), frame, {3: np.ones(1)})
    assert compare([disc_image(3)] * 2, [alpha, np.minimum(alpha, 1)], [3, 3]) == [1, 1]
    assert boxes == [(6, 4, 14, 5)] * 2


def test_dissimilar_instances_are_dropped_and_those_of_a_class_without_real_objects_kept(
    call, caplog, tmp_path, config, layout
):
    write_training_set(tmp_path, [3] * 7)
    generate(layout, 0, 12)
    settings = ["SEGMENTER.SIMILARITY_THRESHOLD", "0.9999", "SEGMENTER.SIMILARITY_OBJECTS", "50"]
    with caplog.at_level(logging.INFO):
        call(segmentAndFilter, "--config", config, "--round", "1", *settings)
    assert [message for message in caplog.messages if "real object" in message] == [
        "compared with 7 real objects of 1 categories, at most 50 of each (SEGMENTER.SIMILARITY_OBJECTS)",
        "1 categories have no real object to compare with (blue_disc): what is drawn for them is kept, its similarity "
        "unknown",
    ]
    index = PoolIndex(layout, [0], dropped_too=True)
    similarity, known = index.column("similarity"), index.category_ids == 3
    assert (np.isnan(similarity) == ~known).all() and known.sum() == 6
    assert set(index.column("reason")[known & (similarity < 0.9999)]) == {"similarity"}
    assert set(index.column("reason")[~known]) == {""}
    verdicts = files.read_json(layout.verdicts(0))
    assert verdicts["settings"]["similarity_threshold"] == 0.9999
    recorded = [v["similarity"] for v in verdicts["instances"]]
    assert recorded == [None if np.isnan(value) else value for value in similarity.tolist()]
    page = files.read_bytes(f"{layout.pictures_dir}/report_rd00.html").decode()
    assert "a similarity to real objects of 0.9999 or more" in page and "<td>similarity</td>" in page


def test_several_processes_share_the_real_features_and_find_what_one_finds(
    call, monkeypatch, config, layout, tmp_path
):
    generate(layout, 0, 9)
    made = Mock(side_effect=real_objects.mean_features)
    monkeypatch.setattr(real_objects, "mean_features", made)
    for share in ("0", "1"):
        call(segmentAndFilter, "--config", config, "--round", "1", "--share", share, "--num-shares", "2")
    several = PoolIndex(layout, [0], dropped_too=True).column("similarity")
    assert made.call_count == 1
    other = RunLayout(str(tmp_path / "other"))
    generate(other, 0, 9)
    call(segmentAndFilter, "--config", config, "--round", "1", "OUTPUT_DIR", other.root)
    one = PoolIndex(other, [0], dropped_too=True).column("similarity")
    np.testing.assert_array_equal(several, one)


@pytest.mark.parametrize(("name", "value", "least"), [("OBJECTS", 0, 1), ("PADDING", -1, 0)])
def test_numbers_that_nothing_can_be_compared_with_are_refused(config, layout, tmp_path, name, value, least):
    key, real = f"SEGMENTER.SIMILARITY_{name}", write_training_set(tmp_path, [3])
    with pytest.raises(UserError, match=f"^{key} is {value}: it is {least} or more$"):
        build_similarity(load_config(config, [key, str(value)]), layout, real, str(tmp_path), CPU)


def test_a_file_of_real_features_is_used_as_long_as_it_is_whole_and_about_the_same(
    monkeypatch, config, layout, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "diSegmenter.real_objects")
    made = Mock(return_value={3: np.ones(4, np.float32)})
    monkeypatch.setattr(real_objects, "mean_features", made)

    monkeypatch.setattr("diSegmenter.build_similarity.load_image_encoder", load := Mock())
    default = load_config(config).SEGMENTER.SIMILARITY_MODEL

    def means(classes, key="PADDING", value="3"):
        cfg, real = (
            load_config(config, [f"SEGMENTER.SIMILARITY_{key}", value]),
            write_training_set(tmp_path, classes),
        )
        return build_similarity(cfg, layout, real, str(tmp_path), CPU)._means

    for calls, arguments in enumerate(
        [
            ([3] * 4,),
            ([3] * 4, "PADDING", "4"),
            ([3] * 4,),
            ([3] * 4, "REVISION", "v2"),
            ([3] * 4,),
            ([3] * 4, "SURROUNDINGS", "white"),
            ([3] * 4,),
            ([3] * 4, "MODEL", "dinov2"),
            ([3] * 4 + [7],),
            ([3] * 3 + [7] * 2,),
        ],
        start=1,
    ):
        for _ in range(2):
            np.testing.assert_array_equal(means(*arguments)[3], np.ones(4, np.float32))
            assert made.call_count == calls
        _, key, value = (*arguments, "", "")[:3]
        of_model = (value if key == "MODEL" else default, value if key == "REVISION" else "main")
        assert load.call_args.args == (*of_model, CPU)
    path = layout.real_features()
    files.write_bytes(path, files.read_bytes(path)[:-3])
    means([3] * 3 + [7] * 2)
    assert made.call_count == 11
    *others, damaged = (r for r in caplog.records if "is made again" in r.message)
    assert {other.message for other in others} == {
        f"{path} is about other objects or settings: it is made again"
    }
    assert damaged.message.startswith(f"{path} is damaged (") and damaged.levelname == "WARNING"
    content, changed = json.loads((tmp_path / "train.json").read_text()), str(tmp_path / "changed.json")
    for calls, (kind, change) in enumerate(
        [
            ("annotations", {"segmentation": [[1, 1, 9, 1, 9, 9]]}),  # another outline in the same box
            ("annotations", {"bbox": [2, 3, 9, 8]}),
            ("images", {"file_name": "1.png"}),
        ],
        start=12,
    ):
        content[kind][0] |= change
        files.write_json(changed, content)
        cfg = load_config(config, ["SEGMENTER.SIMILARITY_PADDING", "3"])
        build_similarity(cfg, layout, read_annotations(changed), str(tmp_path), CPU)
        assert made.call_count == calls


def test_as_many_real_objects_of_a_class_are_compared_with_as_the_settings_say_by_the_run_s_seed(
    monkeypatch, config, layout, tmp_path
):
    real, whole = RealObjects.of_each_class, write_training_set(tmp_path, [3] * 9)
    monkeypatch.setattr(RealObjects, "of_each_class", chosen := Mock(side_effect=real))
    cfg = load_config(config, ["SEGMENTER.SIMILARITY_OBJECTS", "2", "SEED", "5"])
    build_similarity(cfg, layout, whole, str(tmp_path), CPU)
    chosen.assert_called_once_with(whole, str(tmp_path), 2, 5)


def test_the_real_objects_of_a_class_are_drawn_by_the_seed_alone(tmp_path):
    whole = write_training_set(tmp_path, [3] * 12 + [7] * 3)

    def drawn(annotations, most, seed):
        objects = RealObjects.of_each_class(annotations, "", most, seed)
        return [objects.chosen[objects.category_ids == c].tolist() for c in (3, 7)]

    threes, sevens = drawn(whole, 5, 0)
    assert len(threes) == 5 and sevens == [12, 13, 14]
    assert drawn(write_training_set(tmp_path, [3] * 12), 5, 0) == [threes, []]
    assert len(set(drawn(whole, 11, 0)[0])) == 11  # none twice
    some, every = (RealObjects.of_each_class(whole, "", most, 0) for most in (5, 99))
    assert any(some.chosen != every.chosen[: len(some.chosen)])
    for number, place in enumerate(some.chosen.tolist()):  # of which the outline and the box are its own
        np.testing.assert_array_equal(some.opacity(number), every.opacity(place))
    assert drawn(whole, 5, 1)[0] != threes and drawn(whole, 99, 1)[0] == list(range(12))
    content = json.loads((tmp_path / "train.json").read_text())
    content["categories"].insert(0, {"id": 1, "name": "other"})
    files.write_json(str(tmp_path / "more.json"), content)
    more = RealObjects.of_each_class(read_annotations(str(tmp_path / "more.json")), "", 5, 0)
    assert sorted(more.chosen.tolist()) == sorted(threes)
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [100, 0, 5, 5]  # outside of its image
    content["annotations"][2]["bbox"] = [50.5, 30.5, 20, 20]  # partly
    content["annotations"][3]["bbox"] = [3, 4, 5.5, 6.5]
    content["annotations"] += [{**content["annotations"][3], "id": 99, "bbox": [3, 4, 0, 5]}]
    files.write_json(str(tmp_path / "odd.json"), content)
    odd = RealObjects.of_each_class(read_annotations(str(tmp_path / "odd.json")), "", 99, 0)
    assert odd.chosen.tolist() == list(range(2, 12))
    assert odd.boxes[:2].tolist() == [[50, 30, 6, 10], [3, 4, 6, 7]]
    threes, sevens = drawn(write_training_set(tmp_path, [3] * 12 + [7] * 12), 5, 0)
    assert [place + 12 for place in threes] != sevens  # each by random numbers of its own


@pytest.mark.parametrize("broken", ["model", "surroundings", "images"])
def test_what_cannot_be_compared_with_is_said_before_anything_is_cut_out(
    call, tmp_path, config, layout, broken
):
    generate(layout, 0, 3)
    settings, message = {
        "model": (
            ["SEGMENTER.SIMILARITY_MODEL", str(tmp_path)],
            "does not load .*SEGMENTER.SIMILARITY_MODEL",
        ),
        "surroundings": (["SEGMENTER.SIMILARITY_SURROUNDINGS", "red"], "SURROUNDINGS is 'red'.*blur, white"),
        "images": ([], "1 of 9 training images cannot be compared with .*5.png.*DATASETS.TRAIN"),
    }[broken]
    if broken == "images":
        (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=message):
        call(segmentAndFilter, "--config", config, "--round", "1", *settings)
    assert not files.list_dir(layout.segmented(""))


def test_an_image_that_does_not_decode_is_left_out_and_the_others_count_for_their_own_class(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(real_objects, "_STRETCH", 3)
    annotations = write_training_set(tmp_path, [7, 3, 7] + [3] * 17)  # one of twenty may be lost
    (tmp_path / "0.png").write_bytes(b"no image")
    objects = RealObjects.of_each_class(annotations, str(tmp_path), 99, 0)

    def encode(pictures):
        return np.float32([picture.mean((0, 1)) for picture in pictures])

    means = real_objects.mean_features(objects, lambda pixels, *_: pixels, encode, batch_size=4, workers=2)
    upright = [ImageOps.exif_transpose(Image.open(tmp_path / f"{number}.png")) for number in range(1, 20)]
    colours = np.array([np.asarray(image).mean((0, 1)) for image in upright])
    assert means.keys() == {3, 7}
    (told,) = caplog.messages
    assert told.startswith(
        f"1 training images are not compared with, such as {tmp_path}/0.png does not decode"
    )
    np.testing.assert_allclose(means[7], colours[1], rtol=1e-5)
    np.testing.assert_allclose(means[3], np.delete(colours, 1, 0).mean(0), rtol=1e-5)


def test_a_model_without_a_feature_of_the_whole_image_is_refused(clip_folder):
    encode = load_image_encoder(clip_folder, "main", CPU)
    encode._features = Mock(return_value=Mock(spec=["last_hidden_state"]))
    with pytest.raises(UserError, match="SIMILARITY_MODEL to a CLIP or DINOv2"):
        encode([disc_image(4)])


def test_what_is_around_an_object_ends_with_the_image():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    frame = Framing(2, SURROUNDINGS["white"])
    opaque = np.full((6, 8), 255, np.uint8)
    np.testing.assert_array_equal(frame(image, opaque, [1, 1, 3, 2]), image[:5, :6])
    np.testing.assert_array_equal(frame(image, opaque, [4, 3, 3, 2]), image[1:, 2:])


def test_half_transparent_pixels_are_seen_through():
    image = np.full((6, 6, 3), 100, np.uint8)
    opacity = np.full((6, 6), 51, np.uint8)
    seen = Framing(0, SURROUNDINGS["white"])(image, opacity, [1, 2, 3, 2])
    assert seen.shape == (2, 3, 3) and (seen == 224).all()


def test_without_real_objects_there_is_nothing_to_compare_with_and_that_is_remembered(layout, monkeypatch):
    monkeypatch.setattr(real_objects, "mean_features", made := Mock(return_value={}))
    for _ in range(2):
        assert real_objects.read_or_make(layout, None, b"key", None, None, 1, 0) == {}
    made.assert_called_once()
