import re

import pytest

from detectron2_ext.paste.build import build_pasters
from detectron2_ext.paste.pasters import ImagePaster
from exchange.config import REPOSITORY, flatten, load_config

BASELINES = sorted(
    [
        *(REPOSITORY / "configs/baselines").rglob("*.yaml"),
        *(REPOSITORY / "configs/digits").glob("*_digits.yaml"),
    ]
)


def test_the_baselines_load_and_have_run_folders_of_their_own(caplog):
    folders = [load_config(str(path)).OUTPUT_DIR for path in BASELINES]
    assert len(set(folders)) == len(folders)
    assert not caplog.records  # no key without effect


def test_the_box_loss_is_detics_in_its_baselines_and_the_digits_and_the_releases_everywhere_else():
    paths = list((REPOSITORY / "configs").rglob("*.yaml"))
    of_detic = {p for p in paths if load_config(str(p)).MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_PER == "sampled"}
    baselines = [p for p in paths if p.stem.startswith("CenterNet2") and "baselines" in p.parts]
    assert len(baselines) == 3
    assert of_detic == {*baselines, *(p for p in paths if p.parent.name == "digits")}


def test_each_configuration_says_what_it_starts_from_and_why():
    for path in {*(REPOSITORY / "configs").rglob("*.yaml")} - {REPOSITORY / "configs/Cleaned-masks.yaml"}:
        said = re.findall(
            r"^# Starts from (random weights|[^ ]+[a-z0-9]), \w", path.read_text(), re.MULTILINE
        )
        assert said == [load_config(str(path)).MODEL.WEIGHTS or "random weights"], path


def test_swin_l_starts_from_the_backbone_as_in_the_release_or_from_a_baseline():
    released, other = (
        dict(flatten(load_config(str(REPOSITORY / f"configs/MRCA/MRCA_SwinL{name}.yaml"))))
        for name in ("", "_baseline")
    )
    weights = [cfg["MODEL.WEIGHTS"] for cfg in (released, other)]
    assert weights == ["models/swin_large_patch4_window12_384_22k.pth", "models/baseline_SwinL.pth"]
    assert {key for key in other if other[key] != released[key]} == {"MODEL.WEIGHTS", "OUTPUT_DIR"}


def test_the_family_of_the_release_trains_its_backbone_in_half_precision_and_the_digits_do_not():
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        if path.name != "Cleaned-masks.yaml":
            assert load_config(str(path)).FP16 == (path.parent.name != "digits"), path


@pytest.mark.parametrize(
    ("name", "from_images", "from_pool"),
    [
        ("CenterNet2", False, False),
        ("CopyPaste", True, False),
        ("XPaste", False, True),
        ("XPaste_CopyPaste", True, True),
        ("BSGAL", False, True),
    ],
)
@pytest.mark.parametrize("network", ["R50", "SwinL"])
def test_a_baseline_pastes_from_where_its_method_does(name, network, from_images, from_pool):
    cfg = load_config(str(REPOSITORY / f"configs/baselines/{name}_{network}.yaml"))
    pasters = build_pasters(cfg, reader=None, images=None, pool=None, feedback=None, round_=0, seed=0)
    assert [isinstance(paster, ImagePaster) for paster in pasters] == [True] * from_images
    assert (cfg.INPUT.USE_COPY_METHOD in ("syn_copy", "both")) == from_pool == cfg.INPUT.INST_POOL


@pytest.mark.parametrize("name", ["baselines/BSGAL_R50", "baselines/BSGAL_SwinL", "digits/BSGAL_digits"])
def test_bsgal_is_x_paste_with_a_selection_for_lvis_that_of_its_release(name):
    bsgal, x_paste = (
        dict(flatten(load_config(str(REPOSITORY / f"configs/{path}.yaml"))))
        for path in (name, name.replace("BSGAL", "XPaste"))
    )
    differing = {key for key in bsgal if bsgal[key] != x_paste[key] and ".ACTIVE_" not in key}
    shorter = {"MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH"} if name.endswith("R50") else set()
    assert differing == {"OUTPUT_DIR"} | shorter
    assert bsgal["INPUT.ACTIVE_SELECT"] and bsgal["MODEL.ACTIVE_GRAD_UPDATE"] == "MOMENTUM0.1"
    for_lvis = name.startswith("baselines/")
    mode = "only_paste_-0.05" if for_lvis else "only_paste_dynamic_0.5"
    assert bsgal["MODEL.ACTIVE_ONCE_MODE"] == mode and (bsgal["MODEL.ACTIVE_GRAD_LAYERS"] == []) == for_lvis


def test_divergen_is_x_paste_with_a_pool_of_its_own_and_more_categories():
    divergen, x_paste = (
        dict(flatten(load_config(str(REPOSITORY / f"configs/baselines/{name}_SwinL.yaml"))))
        for name in ("DiverGen", "XPaste")
    )
    differing = {key for key in divergen if divergen[key] != x_paste[key]}
    assert {key for key in differing if not key.startswith(("GENERATOR.", "SEGMENTER."))} == {
        "OUTPUT_DIR",
        "DATASETS.EXTRA_CATEGORIES",
        *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH"),
        *("INPUT.INST_POOL", "INPUT.INST_POOL_PATH", "INPUT.INST_POOL_FEED"),
        *("INPUT.INST_POOL_SIZE", "INPUT.INST_POOL_SIZE_RANGE", "SOLVER.ROUND_ITERS"),
    }
    assert divergen["SOLVER.MAX_ITER"] == divergen["SOLVER.ROUND_ITERS"] == 180000
    assert round(divergen["GENERATOR.PER_CLASS"] * divergen["MODEL.ROI_HEADS.NUM_CLASSES"], -4) == 1_200_000
    assert divergen["INPUT.INST_POOL_SIZE_RANGE"] == [0.05, 0.3] and divergen["INPUT.TRAIN_SIZE"] == 896
    assert divergen["SEGMENTER.FOREGROUND"] == ["sam2_background"]


@pytest.mark.parametrize(
    "folder", ["baselines/{}_R50", "baselines/{}_SwinL", "baselines/coco/{}_R50", "digits/{}_digits"]
)
def test_a_single_round_draws_as_many_images_as_all_rounds_do(folder):
    single = load_config(str(REPOSITORY / "configs" / (folder.format("MRCA_1round") + ".yaml")))
    if "baselines/{}" in folder:
        folder = folder.replace("baselines", "MRCA")
    several = load_config(str(REPOSITORY / "configs" / (folder.format("MRCA") + ".yaml")))
    assert single.SOLVER.MAX_ITER == several.SOLVER.MAX_ITER == single.SOLVER.ROUND_ITERS
    rounds = several.SOLVER.MAX_ITER // several.SOLVER.ROUND_ITERS
    assert single.GENERATOR.PER_CLASS == rounds * several.GENERATOR.PER_CLASS
