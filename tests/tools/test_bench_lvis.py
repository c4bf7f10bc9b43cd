"""What the benchmark of annotation files of LVIS's size tells."""

import json
import sys

import pytest

from tools.benchmarks import lvis


@pytest.mark.parametrize("exceeded", [None, "seconds", "peak", "private"])
def test_reading_annotations_is_met_where_neither_time_nor_memory_is_exceeded(exceeded, monkeypatch):
    def line(case, path, cache):
        seconds = {"json": 10.0, "dataset": 12.0}.get(case, 2.0) if cache not in seen else 2.0
        seen.update([cache] if case == "dataset" else [])
        own = {"seconds": seconds, "peak": 2500.0, "private": 100.0}
        worse = case == ("dataset" if exceeded == "peak" else "counts")
        return own | ({exceeded: 1e4} if exceeded and worse else {})

    seen: set[str] = set()
    monkeypatch.setattr(lvis, "write_split", lambda folder, split, scale: folder / split)
    monkeypatch.setattr(lvis, "_in_a_process", line)
    measured = lvis.measure("cpu")
    assert measured["met"] == (exceeded is None) and measured["ratio"] == measured["ours"] / 10


def test_a_line_is_what_a_process_took_from_its_start_on(monkeypatch, capsys):
    told = {"VmHWM": [1024, 4096], "Private_Dirty": [2048, 9216]}
    files = {"VmHWM": "status", "Private_Dirty": "smaps_rollup"}
    read, seconds = lvis._kilobytes, iter([1.0, 3.5])
    monkeypatch.setattr(
        lvis, "_kilobytes", lambda file, name: told[name].pop(0) if file == files[name] else None
    )
    monkeypatch.setattr(lvis.time, "process_time", lambda: next(seconds))
    monkeypatch.setattr(lvis, "_CASES", {"case": str.upper})
    lvis.report("case", "path")
    monkeypatch.undo()
    assert json.loads(capsys.readouterr().out) == {"seconds": 2.5, "peak": 3.0, "private": 7.0}
    assert all(read(file, name) > 1000 for name, file in files.items())


def test_a_file_is_read_in_a_process_of_its_own(tmp_path, python, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(list(range(1_000_000))))
    line = lvis._in_a_process("json", str(path), str(tmp_path))
    assert line["seconds"] > 0 and 20 < line["private"] <= line["peak"] + 20 < 1000


def test_how_much_more_a_larger_file_takes_stands_beside_it(monkeypatch, capsys):
    def measure(device, scale=0.1):
        return {"scale": scale, "lines": {"a": {"seconds": 20 * scale}, "b": {"seconds": 0.0}}}

    monkeypatch.setattr(lvis, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["lvis.py", "--scale", "0.5"])
    lvis.main()
    told = json.loads(capsys.readouterr().out)
    assert told["scale"] == 0.5 and told["growth from 0.1"] == {"a": {"seconds": 5.0}, "b": {"seconds": 0.0}}
