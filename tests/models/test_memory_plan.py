"""Memory that a fit takes: planned as it is measured, and refused where more is planned than is free."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memory import peak_allocated
from pyops.models import Isomap, LandmarkIsomap, isomap, memory_plan
from sklearn.datasets import make_swiss_roll


def roll(n: int) -> torch.Tensor:
    return torch.from_numpy(make_swiss_roll(n, random_state=0)[0]).float()


@pytest.mark.parametrize(
    "n, components, landmarks, dtype, verbose",
    (
        (2500, 2, None, torch.float32, False),
        (2500, 2, None, torch.float64, True),
        (1000, 250, None, torch.float32, False),
        (9000, 2, 900, torch.float32, False),
        (12_000, 2, 300, torch.float64, True),
    ),
)
def test_a_fit_takes_what_is_planned(n, components, landmarks, dtype, verbose):
    model = Isomap(8, n_components=components, verbose=verbose)
    if landmarks:
        model = LandmarkIsomap(8, n_landmarks=landmarks, random_state=0, verbose=verbose)
    used = peak_allocated(lambda: model.fit(roll(n).to(dtype)))
    plan = memory_plan.memory_plan(n, 8, components, dtype, landmarks)
    print(f"{used / 1e6:.1f} of {plan.peak / 1e6:.1f} MB")
    assert 0.75 * plan.peak < used < 1.02 * plan.peak


class Forbidden:
    """Operators for a fit that must not begin."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was called")


def free(monkeypatch, size: float | None) -> None:
    monkeypatch.setattr(isomap, "free_memory", lambda device: None if size is None else int(size))


def test_a_fit_that_does_not_fit_is_refused_before_it_begins(monkeypatch):
    peak = memory_plan.memory_plan(2000, 8, 2, torch.float32, None).peak
    free(monkeypatch, peak - 1)
    message = r"takes 0\.\d+ GB \(graph .*, distances 0.016, work .*, and 0\.\d+ GB are free: LandmarkIsomap with up to"
    with pytest.raises(MemoryError, match=message):
        Isomap(8, ops=Forbidden()).fit(roll(2000))
    with pytest.raises(MemoryError, match="more memory"):
        free(monkeypatch, 1000)
        Isomap(8, ops=Forbidden()).fit(roll(2000))


def test_the_landmarks_that_are_advised_are_the_most_that_fit(monkeypatch):
    free(monkeypatch, 20e6)
    with pytest.raises(MemoryError) as error:
        LandmarkIsomap(8, n_landmarks=2000, random_state=0, ops=Forbidden()).fit(roll(2000))
    most = int(str(error.value).split("up to ")[1].split(" ")[0].replace(",", ""))
    assert 100 < most < 2000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LandmarkIsomap(8, n_landmarks=most, random_state=0).fit(roll(2000))
    with pytest.warns(ResourceWarning, match=f"may not suffice: LandmarkIsomap with up to {most:,} "):
        LandmarkIsomap(8, n_landmarks=most + 1, random_state=0).fit(roll(2000))


def test_a_fit_that_takes_nine_tenths_is_warned_of(monkeypatch):
    peak = memory_plan.memory_plan(300, 8, 2, torch.float32, None).peak
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free(monkeypatch, peak / 0.89)
        Isomap(8).fit(roll(300))
    with pytest.warns(ResourceWarning, match="may not suffice"):
        free(monkeypatch, peak / 0.91)
        Isomap(8).fit(roll(300))


def test_unknown_memory_refuses_nothing(monkeypatch):
    free(monkeypatch, None)
    Isomap(8).fit(roll(100))


def test_verbose_tells_the_plan(capsys, monkeypatch):
    free(monkeypatch, 3e9)
    Isomap(8, verbose=True).fit(roll(300))
    LandmarkIsomap(8, n_landmarks=50, verbose=True).fit(roll(300))
    said = capsys.readouterr().out
    assert "300 points, distances to all of them: 0." in said and "), 3 GB are free" in said
    assert "distances to 50 of them: 0." in said


# ---- what is free ----------------------------------------------------------------------------------------------------


def group(tmp_path: Path, monkeypatch, limit: str, used: int, cache: int) -> None:
    for name, text in (("limit", limit), ("use", f"{used}"), ("memory.stat", f"anon 5\ncache {cache}\n")):
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(
        memory_plan, "_LIMITS", (("/nowhere", "a", "b", "c"), (tmp_path, "limit", "use", "cache "))
    )


def test_free_memory_of_the_machine(monkeypatch):
    known = {
        line.split(":")[0]: 1024 * int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
    }
    monkeypatch.setattr(memory_plan, "_LIMITS", ())
    assert 0 < memory_plan.free_memory(torch.device("cpu")) <= known["MemTotal"]
    monkeypatch.setattr(memory_plan, "Path", lambda name: Path("/nowhere"))
    assert 0 < memory_plan.free_memory(torch.device("cpu")) <= known["MemTotal"]


def test_free_memory_of_a_container(tmp_path, monkeypatch):
    group(tmp_path, monkeypatch, "5000", 3000, 400)
    assert memory_plan.free_memory(torch.device("cpu")) == 2400
    group(tmp_path, monkeypatch, "max", 3000, 400)
    assert memory_plan.free_memory(torch.device("cpu")) > 1e6


def test_free_memory_of_a_gpu_counts_what_pytorch_keeps(monkeypatch):
    figures = {"mem_get_info": (700, 1000), "memory_reserved": 200, "memory_allocated": 50}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**{k: lambda d, v=v: v for k, v in figures.items()}))
    assert memory_plan.free_memory(torch.device("cuda", 0)) == 850
    assert memory_plan.free_memory(torch.device("meta")) is None


def test_landmarks_are_placed_in_parts_as_at_once():
    model = LandmarkIsomap(8, n_landmarks=50, random_state=0).fit(roll(2500))
    distances = torch.as_tensor(model.dist_matrix_)
    torch.testing.assert_close(model.embedding_, model._map.place(distances.mT), rtol=1e-4, atol=1e-4)
