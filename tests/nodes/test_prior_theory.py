"""All samplers of the host on data with an exact score (theory_script.py): which of them keep the prior's mean."""

import pytest
from host import HOST, script_result

pytestmark = pytest.mark.skipif(HOST is None, reason="no ComfyUI")
ENDS_EARLY = {"dpm_fast", "dpm_adaptive"}  # they end at the last σ above 0, where the mean of the noise is σ·μ
BIAS = 0.03  # of data N(1, 0.5²); the discretisation of 25 steps, and five standard errors of 32,768 samples


@pytest.fixture(scope="module")
def found() -> dict:
    return script_result("theory_script.py")


def test_all_samplers_of_the_host_run(found):
    assert len(found["eps"]) > 30
    assert not [name for kind in ("eps", "flow") for name, row in found[kind].items() if "failed" in row]


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_deterministic_samplers_keep_the_mean_from_the_shifted_start_alone(found, kind):
    rows = {name: row for name, row in found[kind].items() if not row["stochastic"] and name not in ENDS_EARLY}
    assert len(rows) > 10
    for name, row in rows.items():
        assert abs(row["shifted"]["bias"]) < BIAS, name
        assert row["plain"]["bias"] < -0.1, name


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_with_more_steps_the_spread_is_that_of_the_data(found, kind):
    rows = [row for row in found[kind].values() if "std of 200 steps" in row]
    assert len(rows) == 5
    for row in rows:
        assert abs(row["std of 200 steps"] - 0.5) < min(0.02, abs(row["shifted"]["std"] - 0.5))


def test_without_gamma_the_share_of_the_terminal_noise_is_missing(found):
    """s/σ_max = 0.034 of the mean; with flow, whose noise at σ = 1 is all there is, nothing is missing (λ alone)."""
    assert found["eps"]["euler"]["without gamma"]["bias"] == pytest.approx(-0.5 / 14.6146, abs=0.01)


def test_stochastic_samplers_lose_the_mean_and_keep_it_with_their_share(found):
    rows = {name: row for name, row in found["eps"].items() if row["stochastic"]}
    assert all(row["share 0 is stock"] for row in rows.values())
    shared = {name for name, row in rows.items() if row["with share"]["bias"] != row["shifted"]["bias"]}
    assert len(shared) >= 10
    for name in shared:
        assert rows[name]["shifted"]["bias"] < -0.1, name
        assert abs(rows[name]["with share"]["bias"]) < BIAS, name


def test_the_share_follows_the_amount_of_noise(found):
    biases = {name: bias for name, bias in found["options"].items() if name != "twice"}
    assert len(biases) == 18
    for name, bias in biases.items():
        assert abs(bias) < BIAS, name


def test_a_sigma_that_stands_twice_takes_no_noise(found):
    assert found["options"]["twice"]
