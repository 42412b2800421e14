"""The Fréchet distance of the bundled model, end to end, with a stand-in for I3D."""

import json

import pytest
from stand_in import save_network, write_ucf

from microcinema_core.cli import main


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_bundled_model_on_a_folder_like_ucf_101(tmp_path, capsys):
    """Real clips against clips of their own frames, in two ranks and then in one, which has nothing left to make."""
    write_ucf(tmp_path / "ucf", clips=2, frames=12)
    save_network(tmp_path / "stand-in.pt")
    command = ["fvd", "demo-base", "--set", "ucf101", "--data", str(tmp_path / "ucf"), "--pictures", "real"]
    command += ["--i3d", str(tmp_path / "stand-in.pt"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    command += ["--frames", "9", "--samples", "9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "1")
        assert main(command) == 0
    assert "rank 1 of 2 has made its clips" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "Fréchet distance (features of stand-in.pt)" and report["paper"] is None
    assert (report["generated"], report["real"], report["features"]) == (9, 6, 4)
    assert report["settings"]["width"] == 96 and report["settings"]["steps"] == 1
    assert 0 <= report["interval"][0] < report["distance"] < report["interval"][1]
