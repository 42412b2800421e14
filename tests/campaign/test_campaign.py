"""A quick part of the campaign of bad input; all of it: `python tests/campaign/campaign.py`."""

from campaign import FAULTS, Case, campaign, judge


def test_bad_input_is_refused_in_one_sentence():
    results = campaign(seed=0, every=44)
    faults = [f"{how}: [{case.kind}] {case.name}: {word}" for case, how, word in results if how in FAULTS]
    assert not faults, "\n".join(faults)
    assert len(results) > 130


def test_the_campaign_sees_what_is_wrong():
    case = Case("command", "x", [], outputs=("out.mp4",), good=False, says="steps")
    before, said = {"photo.png": "1"}, "microcinema: steps cannot be -1: give more\n"

    def how(ended, after=before, case=case):
        return judge(case, before, after, ended)[0]

    good = {"code": 2, "stderr": said, "trace": ""}
    assert how(good) == "refused"
    assert how(None) == "hang"
    assert how({**good, "trace": "Traceback\nValueError: x"}) == "traceback"
    assert how(good, {"photo.png": "2"}) == how(good, {}) == "overwritten"
    assert how(good, {**before, ".out.5.mp4": "1"}) == how(good, {**before, "out.mp4": "1"}) == "half-written"
    for bad in ({"code": 0}, {"code": 1}, {"stderr": ""}, {"stderr": said * 2}, {"stderr": "microcinema: no\n"}):
        assert how({**good, **bad}) == "wrong answer"
    fine = Case("command", "x", [], outputs=("out.mp4",), good=True)
    assert how({**good, "code": 0}, {**before, "out.mp4": "1"}, fine) == "ok"
    assert how({**good, "code": 0}, before, fine) == how(good, before, fine) == "wrong answer"
