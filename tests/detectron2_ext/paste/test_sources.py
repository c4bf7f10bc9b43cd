import numpy as np
import pytest

from detectron2_ext.data.view import PASTED, FitFlip, ResizeCropFlip, Scene, SceneReader
from detectron2_ext.paste.build import build_pasters
from detectron2_ext.paste.sources import Source
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError

# The classes that each image shows; image 3 shows nothing but a crowd of class 2, and nothing is learnt from it.
CONTENTS = [[0], [0, 1, 1], [1, 2], [2]]
IMAGES = np.arange(3)


@pytest.fixture
def reader(small_lvis) -> SceneReader:
    for classes in CONTENTS:
        image = small_lvis.add_image(64, 48)
        for place, category in enumerate(classes):
            crowd = len(small_lvis.images) == 4
            small_lvis.add_object(image, category, [20 * place, 4, 10, 10], iscrowd=int(crowd))
    return SceneReader(small_lvis.read(), ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0))


def copied(reader, scene_index, **settings):
    """(image, classes that were copied) of 400 draws, as the settings have it; image: by the objects' pixels."""
    pairs = [str(part) for name, value in settings.items() for part in (f"INPUT.{name}", value)]
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), ["INPUT.USE_COPY_METHOD", "self_copy", *pairs]
    )
    read = []

    class Recording(SceneReader):
        def __call__(self, index, rng, augmentation=None):
            read.append(index)
            return super().__call__(index, rng, augmentation)

    recording = Recording(reader.dataset, ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0))
    (paster,) = build_pasters(cfg, recording, IMAGES, None, None, 0, 0)
    found = []
    for seed in range(400):
        scene = reader(scene_index, np.random.default_rng(0))
        read.clear()
        infos = paster(scene, 0, np.random.default_rng(seed), [])
        found.append((read[0] if read else None, sorted(info.class_index for info in infos)))
    return found


def test_a_source_lends_the_objects_of_its_classes_of_all_where_it_names_none(reader):
    scene = reader(1, np.random.default_rng(0))
    for classes, lent in ((None, [0, 1, 1]), ([1], [1, 1]), ([0, 2], [0]), ([], [])):
        source = Source(1, None if classes is None else np.array(classes, dtype=np.int64))
        assert [o.class_index for o in source.objects(scene)] == lent


def shares(images) -> list[float]:
    return [images.count(image) / len(images) for image in range(3)]


@pytest.mark.parametrize(
    ("settings", "of_image", "copies"),
    [
        ({}, [1 / 3, 1 / 3, 1 / 3], {0: [0], 1: [0, 1, 1], 2: [1, 2]}),
        # classes 0 and 1 each with 1/2 from the two images that show it; all objects of classes 0 and 1
        ({"SCP_TYPE": "in_domain"}, [1 / 4, 1 / 2, 1 / 4], {0: [[0]], 1: [[0, 1, 1]], 2: [[1]]}),
        # classes 0, 1, 2 each with 1/3; all objects of that class
        ({"SCP_TYPE": "cas"}, [1 / 6, 1 / 3, 1 / 2], {0: [[0]], 1: [[0], [1, 1]], 2: [[1], [2]]}),
        ({"SCP_TYPE": "the_cls", "SCP_SELECT_CATS_LIST": [1]}, [0, 1 / 2, 1 / 2], {1: [1, 1], 2: [1]}),
        (
            {"SCP_TYPE": "the_cls_img", "SCP_SELECT_CATS_LIST": [1]},
            [0, 1 / 2, 1 / 2],
            {1: [0, 1, 1], 2: [1, 2]},
        ),
    ],
    ids=["any", "in_domain", "cas", "the_cls", "the_cls_img"],
)
def test_images_and_objects_are_copied_as_often_as_the_type_says(reader, settings, of_image, copies):
    found = copied(reader, 1, **settings)
    np.testing.assert_allclose(shares([image for image, _ in found]), of_image, atol=0.08)
    for image, allowed in copies.items():
        seen = [classes for index, classes in found if index == image]
        if isinstance(allowed[0], list):
            assert all(classes in allowed for classes in seen) and all(classes in seen for classes in allowed)
        else:  # a random number of them, from none to all
            assert max(seen, key=len) == allowed and [] in seen


def test_an_image_without_objects_of_its_own_copies_from_none_in_its_domain(reader):
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"),
        ["INPUT.USE_COPY_METHOD", "self_copy", "INPUT.SCP_TYPE", "in_domain"],
    )
    (paster,) = build_pasters(cfg, reader, IMAGES, None, None, 0, 0)
    scene = reader(2, np.random.default_rng(0))
    for below in scene.objects:
        below.source = PASTED
    assert paster(scene, 0, np.random.default_rng(0), []) == []


@pytest.mark.parametrize("classes", ["[]", "[3]", "[-1]"])
def test_classes_that_no_training_image_shows_are_named(reader, classes):
    with pytest.raises(UserError, match=r"INPUT\.SCP_SELECT_CATS_LIST is .*list class indices"):
        copied(reader, 0, SCP_TYPE="the_cls", SCP_SELECT_CATS_LIST=classes)


@pytest.mark.parametrize("kind", ["rc_only", "anything"])
def test_a_type_that_the_release_has_not_either_is_refused_with_the_choices(reader, kind):
    with pytest.raises(
        UserError, match="INPUT.SCP_TYPE is .*choose from in_domain, cas, the_cls, the_cls_img"
    ):
        copied(reader, 0, SCP_TYPE=kind)


def test_a_limited_view_is_the_whole_image_at_08_to_12_times_what_fits():
    scales, flips = [], []
    for seed in range(500):
        view = FitFlip((100, 300)).draw((48, 64), np.random.default_rng(seed))
        assert view.scaled_size == view.size == (int(48 * view.scale), int(64 * view.scale))
        assert view.offset == (0, 0)
        scales.append(view.scale / min(100 / 48, 300 / 64))
        flips.append(view.flip)
    np.testing.assert_allclose(np.quantile(scales, [0, 0.5, 1]), [0.8, 1.0, 1.2], atol=0.04)
    assert abs(np.mean(flips) - 0.5) < 0.07


@pytest.mark.parametrize(
    ("limited", "kind", "flip"),
    [(True, "", "none"), (True, "", "horizontal"), (False, "", "none"), (True, "cas", "none")],
)
def test_the_settings_limit_the_size_of_what_any_image_lends_and_mirror_it(reader, limited, kind, flip):
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"),
        [
            "INPUT.USE_COPY_METHOD",
            "self_copy",
            "INPUT.LIMIT_SRC_LSJ",
            str(limited),
            "INPUT.SCP_TYPE",
            repr(kind),
            "INPUT.RANDOM_FLIP",
            flip,
        ],
    )
    (paster,) = build_pasters(cfg, reader, IMAGES, None, None, 0, 0)
    widths, at_the_right = [], set()
    for seed in range(200):
        scene = Scene(np.zeros((60, 80, 3), np.uint8), [])
        for info in paster(scene, 0, np.random.default_rng(seed), []):
            widths.append((info.box[2] - info.box[0]) * 6.4)  # objects are 10 of the 64 pixels wide
            # where the first object is if it is mirrored
            at_the_right.add(info.box[0] + info.box[2] > 1.6 * widths[-1])
    fit = min(60 / 48, 80 / 64)
    expected = (0.8 * fit, 1.2 * fit) if limited and not kind else (1.0, 1.0)
    np.testing.assert_allclose(np.quantile(widths, [0, 1]) / 64, expected, atol=0.11)
    assert at_the_right == ({False} if flip == "none" else {False, True})
