"""The doctor tells the truth about this machine and about a broken one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("probe", "patched", "value", "named"),
    [
        (doctor._locale, "locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968", "ANSI_X3.4-1968"),
        (doctor._threads, "os.getloadavg", lambda: (1e4, 0.0, 0.0), "load 10000.0"),
        (doctor._shared_memory, "shutil.disk_usage", lambda _: SimpleNamespace(free=64e6), "64 MB free"),
        (doctor._work_dirs, "os.access", lambda *_: False, "cannot be written to"),
        (doctor._heads, "find", lambda _: Path("nowhere.pth"), "is missing"),
    ],
)
def test_what_a_machine_lacks_is_named(monkeypatch, probe, patched, value, named):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(f"flmm_detseg.doctor.{patched}", value)
    check = doctor._probe("it", False, probe, "do this")
    assert not check.ok
    assert named in check.detail


def test_the_doctor_finds_the_models_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, (folder, _) in doctor.TINY_MODELS.items():
        assert doctor._probe(name, False, lambda folder=folder: doctor._weights(doctor.find(folder)), "").ok
    assert doctor._probe("heads", False, doctor._heads, "").ok


def test_missing_weights_are_named(tmp_path):
    check = doctor._probe("tiny", False, lambda: doctor._weights(tmp_path / "tiny_llava"), "train it")
    assert not check.ok
    assert "tiny_llava/model.safetensors is missing" in check.detail
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert not doctor._probe("tiny", False, lambda: doctor._weights(tmp_path), "train it").ok
