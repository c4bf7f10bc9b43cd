import sys
import time

from tools.run_rounds import Chain, Interpreters, pool_steps, training_steps


def python(code):
    return [sys.executable, "-c", code]


def test_a_chain_runs_its_steps_in_order_and_the_commands_of_a_step_side_by_side(tmp_path):
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    both_there = (
        "import time, pathlib; pathlib.Path({own!r}).touch()\n"
        "deadline = time.monotonic() + 20\n"
        "while not pathlib.Path({other!r}).exists():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.01)"
    )
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    side_by_side = [
        python(both_there.format(own=one, other=two)),
        python(both_there.format(own=two, other=one)),
    ]
    chain = Chain("test", [[python(f"{write}('a')")], side_by_side, [python(f"{write}('b')")]], {})
    chain.start()
    chain.join()
    assert chain.failed is None
    assert log.read_text() == "ab"


def test_a_failed_command_stops_its_chain_and_is_named(tmp_path):
    after = tmp_path / "after"
    bad = python("import sys; sys.exit(3)")
    chain = Chain("test", [[bad], [python(f"open({str(after)!r}, 'w')")]], {})
    chain.start()
    chain.join()
    assert chain.failed == bad
    assert not after.exists()


def test_stopping_a_chain_ends_what_it_started(tmp_path):
    started = tmp_path / "started"
    chain = Chain("test", [[python(f"open({str(started)!r}, 'w'); import time; time.sleep(60)")]], {})
    chain.start()
    while not started.exists():
        time.sleep(0.01)
    chain.stop()
    chain.join(timeout=20)
    assert not chain.is_alive() and chain.failed is None


def test_each_round_has_one_generator_process_a_gpu_and_each_stage_its_own_interpreter():
    interpreters = Interpreters("gen", "seg", "train")
    steps = pool_steps(["--config", "x.yaml"], rounds=2, gpus=3, python=interpreters)
    assert [len(step) for step in steps] == [3, 1, 3, 1]
    assert [command[0] for step in steps for command in step] == ["gen"] * 3 + ["seg"] + ["gen"] * 3 + ["seg"]
    assert steps[2][1][2:] == "--gpu 1 --div 1 --num_div 3 --st_rd 1 --round 1 --config x.yaml".split()
    assert len(training_steps(["--config", "x.yaml"], rounds=2, gpus=3)) == 2
