import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from detectron2_ext.predictor import Predictor
from exchange.errors import UserError
from tests.digits_run import write_run, write_scenes
from tools import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


def test_a_folder_becomes_pictures_and_results_that_coco_s_tools_read(run, tmp_path, call, capsys):
    photos = tmp_path / "with spaces/und Ümläut"
    write_scenes(photos, 5)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    out = tmp_path / "with spaces/found"
    call(predict, "--run", run, tmp_path / "with spaces", "--out", out, "--batch-size", 2, "--score", 0.3)
    assert "in 5 images, 1 could not be read" in capsys.readouterr().out
    coco = COCO(str(out / "images.json"))
    results = coco.loadRes(str(out / "coco_instances_results.json"))
    names = [image["file_name"] for image in coco.dataset["images"]]
    assert names == [f"und Ümläut/scene {n}.png" for n in range(5)]
    predictor = Predictor.from_run(str(run))
    for image in coco.dataset["images"]:
        alone = predictor(str(tmp_path / "with spaces" / image["file_name"]))
        ours = results.loadAnns(results.getAnnIds(imgIds=[image["id"]]))
        assert [record["category_id"] for record in ours[:3]] == alone.category_ids[:3].tolist()
        np.testing.assert_allclose([record["score"] for record in ours[:3]], alone.scores[:3], rtol=1e-3)
        picture = np.asarray(Image.open(out / "pictures" / f"{image['file_name']}.png"))
        assert picture.shape == (400, 400, 3)
    assert len(predict.image_files(tmp_path / "with spaces", out)) == 6  # its own pictures are no input


def test_a_folder_without_a_readable_image_is_refused_and_leaves_no_results(run, tmp_path, call):
    for path, sentence in ((tmp_path / "no", "there is no folder"), (tmp_path, "holds no image")):
        with pytest.raises(UserError, match=sentence):
            call(predict, "--run", run, path, "--out", tmp_path / "out")
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(UserError, match="none of the 1 images"):
        call(predict, "--run", run, tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out/coco_instances_results.json").exists()
