"""Appearance Noise Prior (any model): what the host's models are given by the host's sampler nodes."""

import pytest
from host import HOST, script_result

pytestmark = pytest.mark.skipif(HOST is None, reason="no ComfyUI")
FAMILIES = ("SD15", "SVD", "Wan21", "Wan22", "LTXV", "LTXAV", "HunyuanVideo", "Cosmos", "CosmosPredict2", "Mochi",
            "CogVideoX")  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict:
    return script_result("prior_script.py")


@pytest.fixture(params=FAMILIES)
def family(request, found) -> dict:
    if request.param not in found["families"]:
        pytest.skip(f"this host has no {request.param}")
    return found["families"][request.param]


def test_every_sampler_node_starts_from_noise_with_the_pictures_mean(family):
    assert len(family["samplers"]) == 4
    for row in family["samplers"].values():
        assert row["mean"] > 1e-3 and row["error"] < 1e-4 * row["mean"] + 2e-6
        assert row["changed"] > 1e-3
        assert row["sound"] == 0


def test_strength_0_is_stock_to_the_bit(family):
    assert all(row["zero is stock"] for row in family["samplers"].values())


def test_a_second_stage_without_noise_is_left_alone(family):
    assert family["cases"]["second stage"] == 0


def test_denoise_below_1_shifts_by_the_same_part_as_the_noise(family):
    assert 0 < family["cases"]["half"] < 1


def test_the_prior_enters_once_in_every_run_and_of_two_nodes_the_last(family):
    mean = family["samplers"]["KSampler"]["mean"]
    assert family["cases"]["again"] == 0
    assert family["cases"]["two nodes"] < 1e-4 * mean + 2e-6


def test_the_strength_follows_its_curve(family):
    assert family["cases"]["falling"] == pytest.approx([1, 0], abs=1e-3) or family["cases"]["falling"][0] > 1000
    first, last = family["cases"]["custom"]
    assert first == pytest.approx(0, abs=1e-6) and last > 1.99


def test_a_given_frame_stays_given(family):
    if "given frame" not in family["cases"]:
        pytest.skip("masks of packed latents are the host's own matter")
    assert family["cases"]["given frame"] == 0 and family["cases"]["other frames"] > 1e-3


def test_the_noise_is_shifted_after_windows_have_shuffled_it(found):
    assert found["special"]["prior first"] < 1e-4
    assert found["special"]["windows first"] < 1e-4


def test_guide_frames_are_left_alone(found):
    first, second, guide = found["special"]["guides"]
    assert guide == 0 and first > 1e-3 and second > 1e-3
    assert found["special"]["curve before guides"] == pytest.approx([1, 0], abs=1e-3)


def test_a_second_stage_is_one_with_another_sampling_too(found):
    assert found["special"]["patched second stage"] == 0


def test_a_scale_of_the_noise_does_not_scale_the_mean(found):
    if "noise scale" not in found["special"]:
        pytest.skip("this host has no noise_scale")
    assert found["special"]["noise scale"] < 2e-6


def test_what_cannot_be_is_refused_in_a_sentence(found):
    messages = found["refused"]
    assert all(message.startswith("MicroCinemaError: ") for message in messages.values()), messages
    assert "wire the VAE that belongs to the model" in messages["other vae"]
    assert "give numbers with commas" in messages["curve"]
    if "ar_video" in messages:
        assert "draws the noise of every block by itself" in messages["ar_video"]
