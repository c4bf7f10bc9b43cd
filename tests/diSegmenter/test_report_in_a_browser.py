"""The report of a round as a person sees it."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.diSegmenter.test_report import report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
# Without the last four it asks the network for updates.
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --window-size=1700,1500".split()
)
OPTIONS += "--disable-quic --disable-background-networking --disable-component-update --disable-sync".split()
# Leaves in the document what the browser knows about each picture once everything is loaded.
COUNT_PICTURES = """<script>addEventListener("load", () => {
  const pictures = [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])
  document.documentElement.dataset.pictures = JSON.stringify(pictures)
})</script>"""

needs_browser = pytest.mark.skipif(
    BROWSER is None and os.environ.get("MRCA_TEST_BROWSER") != "required",
    reason="there is no browser here: apt-get install chromium",
)


def browse(text: str, folder: Path) -> tuple[list[list], np.ndarray]:
    """Whether each picture of a page is complete, its width and height; the screenshot, uint8 (H, W, 3)."""
    (folder / "page.html").write_text(text + COUNT_PICTURES)
    outputs = [f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}", "--dump-dom"]
    command = [BROWSER, *OPTIONS, *outputs, (folder / "page.html").as_uri()]
    document = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pictures = re.search(r'data-pictures="(.*?)"', document)
    assert pictures, "the page did not load"
    return json.loads(html.unescape(pictures[1])), np.array(Image.open(folder / "page.png").convert("RGB"))


@needs_browser
def test_a_browser_shows_every_picture_of_the_report(layout, tmp_path):
    pictures, seen = browse(report(layout, [30, 20, 31, 21, 32, 33]), tmp_path)
    assert len(pictures) == 2
    assert all(complete and width > 400 and height > 100 for complete, width, height in pictures)
    disc = (seen == (150, 20, 20)).all(axis=-1)  # the ink of what was generated, in no other part of the page
    frames = {colour: (seen == colour).all(axis=-1).sum() for colour in ((22, 130, 60), (190, 40, 40))}
    assert disc.sum() > 1000 and all(count > 1000 for count in frames.values())
