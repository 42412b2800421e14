"""Cuts between photographs, which are here with the bundled models; tests/core/test_cuts.py draws its pictures."""

from itertools import permutations

from footage import cuts, pan

from microcinema_core.demo.evaluate import PHOTOGRAPHS

SIZE = (256, 144)
PATHS = sorted(PHOTOGRAPHS.glob("*.jpg"))


def test_every_cut_between_two_photographs_is_found():
    shots = {path: list(pan(8, SIZE, path, 1)) for path in PATHS}
    assert len(shots) > 10
    for first, second in permutations(PATHS, 2):
        assert cuts([*shots[first], *shots[second]]) == [8], (first.stem, second.stem)


def test_a_pan_over_a_photograph_is_no_cut():
    assert not any(cuts(pan(20, SIZE, path, speed)) for path in PATHS for speed in (1, 12, 40))
