"""What the page of a run says where files of the run are damaged, and what else a user can get wrong."""

import re

import pytest

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from tests.tools.made_up_run import layout, page
from tools import report

__all__ = ["layout"]


@pytest.mark.parametrize("content", [[], {}, {"classes": [{"id": 1, "taken_for": [3]}]}])
def test_scores_that_are_damaged_are_named(content, layout):
    path = layout.scores("discs", "model.pth")
    files.write_json(path, content)
    with pytest.raises(UserError, match=re.escape(path)):
        page(layout.root)


@pytest.mark.parametrize(
    "content", [b"id,class\n1,red\n", b"id,class,N\none,red,3\n", b"id,class,N\n1\n", b"id\xff"]
)
def test_an_allocation_that_is_damaged_is_named(content, layout):
    path = f"{layout.pictures_dir}/allocation_rd00.csv"
    files.write_bytes(path, content)
    with pytest.raises(UserError, match=rf"{re.escape(path)} is no table of an allocation .*: remove it"):
        page(layout.root)


@pytest.mark.parametrize("line", [b'{"iteration": 1', b"[" * 100_000, b"\xff"])
def test_metrics_that_are_damaged_are_named(line, layout):
    path = f"{layout.train_dir}/metrics.json"
    files.write_bytes(path, b'{"iteration": 0, "total_loss": 1.0}\n' + line)
    with pytest.raises(
        UserError, match=rf"{re.escape(path)} has a line that is no JSON .*: remove that line"
    ):
        page(layout.root)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run, as it has no run.yaml"),
        (["b", "a", "a/"], "the run a is given twice"),
        (["a", "--out", "page.htm"], "ends with .html"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(arguments, sentence, call):
    with pytest.raises(UserError, match=sentence):
        call(report, *arguments)


@pytest.mark.parametrize("content", [b"settings: {}", b"versions: {}\nsettings: []", b"a"])
def test_settings_that_lack_a_part_are_one_sentence(content, tmp_path):
    layout = RunLayout(str(tmp_path))
    files.write_bytes(layout.settings_file, content)
    with pytest.raises(UserError, match=r"run\.yaml does not hold the settings and versions of a run"):
        page(layout.root)
