"""The doctor tells the truth about this machine and about a broken one."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from flmm_detseg import cli, doctor


@pytest.fixture(scope="module")
def checks() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine()}


def test_the_core_works_here(checks):
    failed = [check for check in checks.values() if check.core and not check.ok]
    assert not failed
    for name in ("torch", "torch and torchvision", "mmcv, mmdet, mmseg", "xtuner package", "disk", "memory"):
        assert checks[name].core


def test_a_package_that_only_an_extra_wants_is_not_core(monkeypatch):
    wanted = ["torch>=2", 'redis>=5; extra == "redis"', 'absent-one>=1; python_version >= "3"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    versions = {"torch": "2.0", "flmm_detseg": "0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = {check.name: check for check in doctor._package_checks()}
    assert found["torch"].ok
    assert found["torch"].core
    assert not found["redis"].ok
    assert not found["redis"].core
    assert "pip install 'redis>=5'" in found["redis"].remedy
    assert not found["absent-one"].ok
    assert found["absent-one"].core


def test_each_failure_has_a_remedy(checks):
    assert all(check.remedy for check in checks.values() if not check.ok)
    assert not any(check.remedy for check in checks.values() if check.ok)


def test_gpu_finding_agrees_with_torch(checks):
    import torch

    assert checks["GPU"].ok == torch.cuda.is_available()


@pytest.mark.parametrize(("core", "status"), [(True, 1), (False, 0)])
def test_exit_status_follows_the_core(monkeypatch, capsys, core, status):
    found = [doctor.Check("good", True, True, "fine"), doctor.Check("bad", False, core, "broken", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "--json"])
    assert caught.value.code == status
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is (status == 0)
    assert printed["checks"][1]["remedy"] == "mend it"
    with pytest.raises(SystemExit):
        doctor.run(Namespace(json=False))
    assert "mend it" in capsys.readouterr().out


def test_a_failing_probe_is_a_finding_not_a_crash():
    def broken() -> str:
        print("noise")
        raise RuntimeError("operator torchvision::nms does not exist\nlong trace")

    check = doctor._probe("torch", True, broken, "reinstall")
    assert (check.ok, check.detail) == (False, "RuntimeError: operator torchvision::nms does not exist")
    assert check.remedy == "reinstall"


def test_missing_weights_are_named(tmp_path):
    check = doctor._probe("tiny", False, lambda: doctor._weights(tmp_path / "tiny_llava"), "train it")
    assert not check.ok
    assert "tiny_llava/model.safetensors is missing" in check.detail
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert not doctor._probe("tiny", False, lambda: doctor._weights(tmp_path), "train it").ok


def test_version_command(capsys):
    cli.main(["version"])
    assert capsys.readouterr().out.strip().count(".") == 2
