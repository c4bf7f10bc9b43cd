from tools.seed_statistics import rows_of


def summary(control, last):
    aps = [dict.fromkeys(("ap", "ap_r", "ap_c", "ap_f"), value) for value in (10.0, control, last)]
    return {"baseline": aps[0], "control": aps[1], "rounds": [aps[1], aps[2]], "seed": 0}


def test_the_gain_is_taken_within_each_seed_before_mean_and_sample_deviation():
    rows = rows_of([summary(20.0, 23.0), summary(30.0, 35.0)])
    assert [row[0] for row in rows] == ["baseline", "control", "round 0", "round 1", "gain over the control"]
    assert rows[1][1:] == ["25.0 ± 7.1"] * 4
    assert rows[-1][1:] == ["4.0 ± 1.4"] * 4
