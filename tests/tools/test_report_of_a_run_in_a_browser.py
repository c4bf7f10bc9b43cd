"""The page of a run as a person uses it: sorted, filtered, a class opened, two runs compared; and at LVIS's size."""

import dataclasses
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exchange import files
from exchange.images import encode_png
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.test_report_in_a_browser import BROWSER, OPTIONS, needs_browser
from tests.tools.made_up_run import ap_of, write_made_up_run
from tools.digits.scenes import photographs
from tools.report import write_report
from tools.run_report import sprites

pytestmark = needs_browser
EVIL = "<script>alert(1)</script>"
NAMES = ["red disc", EVIL, "blue disc", "pink disc", "Blue square"]
# In front of everything: what goes wrong, and what is asked for.
WATCH = """<script>
const wrong = []
addEventListener("error", event => wrong.push(event.message || event.target.src), true)
addEventListener("unhandledrejection", event => wrong.push(String(event.reason)))
for (const kind of ["error", "warn"]) console[kind] = text => wrong.push(text)
window.alert = text => wrong.push(`alert ${text}`)
</script>"""
# Leaves in the document what USE returns.
TELL = """<script>
const click = title => [...document.querySelectorAll("#table th button")].find(b => b.textContent === title).click()
const shown = () => [...table.tBodies[0].rows].filter(row => row.checkVisibility()).map(row => row.cells[0].textContent)
const type = (id, text) => { const input = document.getElementById(id); input.value = text
  input.dispatchEvent(new Event("input", {bubbles: true})) }
const open_ = async id => { document.querySelector(`#table tr[data-id="${id}"] a`).click()
  while (opened.dataset.ready !== String(id)) await new Promise(done => setTimeout(done, 10))
  const sheets = [...loaded].map(([name, sheet]) => [name, sheet.complete, sheet.picture.naturalWidth])
  return {title: opened.querySelector("h2").textContent,
    heads: [...opened.querySelectorAll("h3")].map(head => head.textContent),
    cards: [...opened.querySelectorAll(".instance")].map(c => c.innerText), sheets,
    asked: [...document.querySelectorAll("script[src]")].map(s => s.getAttribute("src"))} }
addEventListener("load", async () => {
  const told = await (async () => { USE })()
  const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)
  document.documentElement.dataset.told = JSON.stringify({told, wrong, broken})
})</script>"""


def use(page: str, steps: str, folder: Path, *options: str) -> Any:
    """What the steps, JavaScript with the functions of TELL, return in a browser in which nothing goes wrong."""
    text = Path(page).read_text()
    copy = Path(page).with_name("used.html")
    copy.write_text(text.replace("<head>", f"<head>{WATCH}") + TELL.replace("USE", steps))
    command = [
        BROWSER,
        *OPTIONS,
        *options,
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=60000",
        "--dump-dom",
    ]
    document = subprocess.run([*command, copy.as_uri()], check=True, capture_output=True, text=True).stdout
    found = re.search(r'data-told="(.*?)"', document)
    assert found, "the steps did not end"
    result = json.loads(html.unescape(found[1]))
    assert result["wrong"] == [] and result["broken"] == []
    return result["told"]


def test_a_page_is_sorted_filtered_and_a_class_opened(tmp_path):
    layout = write_made_up_run(tmp_path / "run", NAMES)
    rows = list(PoolIndex(layout, [1], dropped_too=True))
    write_index(layout, 1, [dataclasses.replace(row, similarity=0.25) for row in rows])
    pasted = {"images": [3], "files": [layout.instance_name(1, 2, 2)], "categories": [2]}
    picture = encode_png(np.zeros((9, 9, 3), np.uint8), pasted)
    files.write_bytes(f"{layout.pictures_dir}/training_rd01.png", picture)
    steps = """
const asked = document.querySelectorAll("script[src]").length
const before = {names: shown(), asked, pictures: document.images.length}
click("change"); const gained = shown(); click("change"); const lost = shown(); click("class"); const named = shown()
type("name", "BLUE"); const blue = [shown(), document.getElementById("shown").textContent]
type("group", "f"); const frequent = shown(); type("name", ""); type("group", "")
return {before, gained, lost, named, blue, frequent, opened: await open_(2)}"""
    told = use(write_report([layout.root], str(tmp_path / "of run #1.html")), steps, tmp_path)
    assert told["before"] == {"names": NAMES, "asked": 0, "pictures": 1}  # the page's own, of training
    by_change = sorted(range(1, 6), key=lambda i: -ap_of(1, i))
    assert told["gained"] == [NAMES[i - 1] for i in by_change]
    assert told["lost"] == told["gained"][::-1]
    assert told["named"] == [EVIL, "blue disc", "Blue square", "pink disc", "red disc"]
    assert told["blue"] == [["blue disc", "Blue square"], "2 classes"] and told["frequent"] == ["Blue square"]
    opened = told["opened"]
    assert opened["title"] == EVIL and len(opened["cards"]) == 6
    dropped, kept = opened["cards"][3:5]
    for part in (
        *("dropped: CLIP score", f"a photo of {EVIL}", f"round 1, seed {2**62 + 1}"),
        *("CLIP 20 on white, 10 on black", "entropy 0.5 → 0.75"),
    ):
        assert part in dropped
    assert "kept" in kept and "CLIP – on white, 32 on black" in kept and "similarity 0.25" in kept
    assert "pasted into training image 3 of round 1" in kept and "pasted" not in dropped
    sheets = [f"of%20run%20%231/A/rd0{round_}_000" for round_ in (0, 1)]
    assert sorted(opened["sheets"]) == [[name, True, sprites.COLUMNS * sprites.SIDE] for name in sheets]


@pytest.mark.parametrize("width", [400, 500, 1400])
def test_the_numbers_at_the_axes_are_shown_whole_at_any_width(width, tmp_path):
    layout = write_made_up_run(tmp_path / "run", NAMES)
    metrics = [{"iteration": n, "lr": 0.000384 / n, "total_loss": 0.000388 * n} for n in range(1, 20)]
    files.write_bytes(f"{layout.train_dir}/metrics.json", "\n".join(map(json.dumps, metrics)).encode())
    steps = """return [...document.querySelectorAll("svg text")].map(text => {
const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect()
return [text.textContent, Math.min(box.left - frame.left, frame.right - box.right) >= 0] })"""
    told = use(write_report([layout.root]), steps, tmp_path, f"--window-size={width},900")
    assert "0.000384" in dict(told) and all(dict(told).values())


def test_after_many_rounds_the_name_of_a_class_stays_beside_its_last_columns(tmp_path):
    page = write_report([write_made_up_run(tmp_path / "run", NAMES, rounds=40, images=False).root])
    steps = """
const frame = table.parentElement
frame.scrollTo(frame.scrollWidth, 0)
return [frame.scrollLeft, ...[table.tHead.rows[0], ...table.tBodies[0].rows].map(row => {
const cell = row.cells[0], {left, top, height} = cell.getBoundingClientRect()
return cell.contains(document.elementFromPoint(left + 4, top + height / 2)) })]"""
    scrolled, *named = use(page, steps, tmp_path, "--window-size=1400,3000")
    assert scrolled > 1000 and named == [True] * 6


def test_what_is_folded_on_the_screen_is_printed(tmp_path):
    layout = write_made_up_run(tmp_path / "run", NAMES)
    for width, name in enumerate(
        ["training_rd00", "training_rd01", "allocation_rd00", "allocation_rd01"], 20
    ):
        pixels = np.random.default_rng(width).integers(0, 256, (20, width, 3), np.uint8)
        files.write_bytes(f"{layout.pictures_dir}/{name}.png", encode_png(pixels))
    page, pdf = write_report([layout.root]), tmp_path / "page.pdf"
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}"]
    subprocess.run([*command, Path(page).as_uri()], check=True, capture_output=True)
    widths = re.findall(rb"/Subtype /Image\s+/Width (\d+)", pdf.read_bytes())
    assert sorted(map(int, widths)) == [20, 21, 22, 23]


def test_two_runs_are_compared_and_a_class_shows_what_each_drew(tmp_path):
    one, other = (write_made_up_run(tmp_path / name, NAMES, rounds) for name, rounds in (("a", 2), ("b", 1)))
    steps = 'click("difference"); return {order: shown(), opened: await open_(3)}'
    told = use(write_report([one.root, other.root]), steps, tmp_path)
    gain = {i: ap_of(0, i) - ap_of(1, i) for i in range(1, 6)}
    assert told["order"] == [NAMES[i - 1] for i in sorted(gain, key=lambda i: -gain[i])]
    assert told["opened"]["heads"] == ["A", "B"] and len(told["opened"]["cards"]) == 9


def test_a_run_of_lvis_s_size_is_small_and_loads_the_sheets_of_the_class_that_is_opened_alone(
    tmp_path, monkeypatch
):
    sheet = _sheet_of_photographs(tmp_path / "photographs")
    monkeypatch.setattr(sprites, "sheet", lambda *_: sheet)
    names = [f"class {i}" for i in range(1, 1204)]
    layout = write_made_up_run(tmp_path / "run", names, rounds=10, per_class=4, images=False)
    page = write_report([layout.root])
    assert sum(len(PoolIndex(layout, [round_], dropped_too=True)) for round_ in range(10)) == 48_120
    assert Path(page).stat().st_size < 5e6
    assert (
        sum(path.stat().st_size for path in Path(f"{layout.root}/report").rglob("*.*") if path.is_file())
        < 95e6
    )
    told = use(page, "return [shown().length, document.images.length, await open_(700)]", tmp_path)
    assert told[:2] == [1203, 0] and len(told[2]["cards"]) == 40
    place = 699 * 4 // sprites.PER_SHEET
    assert sorted(told[2]["asked"]) == [f"report/A/rd{round_:02}_{place:03}.js" for round_ in range(10)]
    assert len(told[2]["sheets"]) == 10


def _sheet_of_photographs(folder: Path) -> bytes:
    """A whole sheet whose images are parts of photographs, of which no size is saved."""
    layout = write_made_up_run(folder, ["part"], rounds=1, per_class=sprites.PER_SHEET)
    pool, rng = PoolIndex(layout, [0], dropped_too=True), np.random.default_rng(0)
    for row in range(sprites.PER_SHEET):
        photograph = photographs("val")[row % 2]
        y, x = (int(rng.integers(extent - 192)) for extent in photograph.shape[:2])
        part = np.ascontiguousarray(photograph[y : y + 192, x : x + 192])
        files.write_bytes(layout.raw(pool[row].file), encode_png(part))
    return sprites.sheet(layout, pool, range(sprites.PER_SHEET))
