"""`bwinfer info` with GPUs that are not there: what fits where, and why not."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from blackwell_infer.cli import info
from blackwell_infer.cli.main import main
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.info import DeviceInfo, Devices
from blackwell_infer.errors import DeviceError

MODEL = Path(__file__).resolve().parents[1] / "data" / "llama"
H200 = DeviceInfo(0, "NVIDIA H200", (9, 0), "sm_90a", 132, 140 << 30, 139 << 30)
BLACKWELL = DeviceInfo(1, "NVIDIA RTX PRO 6000", (12, 0), "sm_120f", 188, 96 << 30, None)
OLD = DeviceInfo(2, "NVIDIA A100", (8, 0), "sm_80", 108, 80 << 30, 79 << 30)


def fits(*gpus: DeviceInfo, driver: tuple[int, int] = (13, 0),
         engine: EngineConfig | None = None) -> dict[str, info.Fit]:
    devices = Devices(gpus, driver, "")
    return info.examine(MODEL, engine or EngineConfig(), info.list_places(devices), devices)[1]


def test_a_model_fits_where_there_is_room_and_kernels() -> None:
    found = fits(H200, BLACKWELL, OLD)
    assert [name for name, fit in found.items() if fit.fits] == ["cuda:0", "cuda:1", "numpy"]
    assert "kernels exist for sm_90a" in found["cuda:2"].why
    for fit in (found["cuda:0"], found["numpy"]):
        assert fit.weights > 0
        assert fit.cache % fit.cache_per_token == 0
        assert fit.context > 0
    assert found["cuda:0"].dtype == "bfloat16"
    assert found["numpy"].dtype == "float32"


def test_a_device_setting_chooses_the_places() -> None:
    def names(device: str) -> list[str]:
        return list(fits(H200, BLACKWELL, engine=EngineConfig(device=device)))

    assert names("auto") == ["cuda:0", "cuda:1", "numpy"] and names("cuda") == ["cuda:0", "cuda:1"]
    assert names("cuda:1") == ["cuda:1"] and names("numpy") == ["numpy"]
    with pytest.raises(DeviceError, match="cuda:7 is not here; found cuda:0, cuda:1, numpy"):
        names("cuda:7")


def test_too_little_memory_is_said_in_bytes() -> None:
    small = DeviceInfo(0, "tiny", (9, 0), "sm_90a", 132, 1 << 20, 1 << 16)
    found = fits(small)["cuda:0"]
    assert not found.fits
    assert "65536 bytes" in found.why
    assert "weights" in found.why


def test_a_setting_that_a_place_does_not_have_is_said() -> None:
    found = fits(H200, engine=EngineConfig(reproducible=True))
    assert found["cuda:0"].fits and not found["numpy"].fits
    assert "take device cuda or emulated" in found["numpy"].why


def test_an_old_driver_is_said() -> None:
    assert "the driver speaks CUDA 12.8, 13.0 is needed" in fits(H200, driver=(12, 8))["cuda:0"].why


def test_the_report_lists_devices_and_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(info, "list_devices", lambda: Devices((H200, BLACKWELL), (13, 0), ""))
    assert main(["info", str(MODEL)]) == 0
    shown = capsys.readouterr().out
    for part in ("driver   CUDA 13.0", "cuda:0   NVIDIA H200, sm_90a, 132 SMs: 139.0 GiB free of 140.0 GiB",
                 "cuda:1   NVIDIA RTX PRO 6000, sm_120f, 188 SMs: free memory unknown of 96.0 GiB", "family   llama",
                 "cuda:0   fits with a context of"):
        assert part in shown, shown
    assert main(["info", str(MODEL), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["fit"]["cuda:0"]["fits"]
    assert got["model"]["stored"] == {"bf16": 2 * got["model"]["parameters"]}
    assert got["devices"][0]["gpu"]["arch"] == "sm_90a"


def test_no_gpu_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for devices in (Devices((), (0, 0), "no driver here"), Devices((), (13, 0), "no GPU here")):
        monkeypatch.setattr(info, "list_devices", lambda devices=devices: devices)
        assert main(["info"]) == 0
        assert devices.reason in capsys.readouterr().out
