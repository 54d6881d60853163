"""star doctor on made-up cards and toolboxes: what is right, to note or wrong, and what to do."""

import sys
from types import SimpleNamespace

import pytest
import torch
from test_doctor import by_name, files

from probes.doctor import devices, tools
from probes.doctor.devices import Build, Card
from probes.doctor.lines import FAIL, NOTE, OK

# Devices.

CU13 = Build(cuda="13.0", architectures=("sm_75", "sm_80", "sm_90", "sm_120", "compute_120"))


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 6), True), ((8, 9), True), ((9, 0), True), ((10, 0), False),
     ((12, 1), True), ((13, 0), True)],
)  # fmt: skip
def test_which_cards_a_build_of_torch_has_kernels_for(capability, runs):
    assert CU13.runs_on(capability) == runs
    card = Card(index=1, name="Made-up", capability=capability, free=2**34, total=2**35)
    line = devices.card_line(card, CU13)
    assert line.status == (OK if runs else FAIL) and line.name == "cuda:1"
    assert "16 GiB free of 32 GiB" in line.value


def test_a_card_that_others_have_filled_is_to_note():
    card = Card(index=0, name="Made-up", capability=(9, 0), free=2**29, total=2**35)
    assert devices.card_line(card, CU13).status == NOTE
    assert Build(cuda="7.1", architectures=("gfx942",)).runs_on((9, 4))


@pytest.mark.parametrize(
    ("build", "driver", "environment", "status", "words"),
    [
        (CU13, None, {}, OK, "no driver"),
        (Build(cuda=None), "580.1", {}, NOTE, "a torch built for CUDA"),
        (CU13, "580.1", {"CUDA_VISIBLE_DEVICES": ""}, NOTE, "unset CUDA_VISIBLE_DEVICES"),
        (CU13, "470.82", {}, NOTE, "update the driver"),
    ],
)
def test_no_card_is_seen(build, driver, environment, status, words):
    line = devices.no_card_line(build, driver, "RuntimeError: too old", environment)
    assert line.status == status and words in line.value + line.advice
    assert ("too old" in line.value) == ("update" in words)


def test_the_version_of_the_driver(tmp_path):
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    assert devices.driver(files(proc_driver_nvidia_version=text), ()) == "535.104.05"
    open_ = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    assert devices.driver(files(proc_driver_nvidia_version=open_), ()) == "580.95.05"
    (tmp_path / "nvidiactl").write_text("")
    assert devices.driver(lambda path: None, [str(tmp_path / "nvidiactl")]) == "of unknown version"
    assert devices.driver(lambda path: None, [str(tmp_path / "gone")]) is None


@pytest.fixture
def one_card(monkeypatch):
    """A machine with one card of capability 7.0, as far as torch tells."""
    properties = SimpleNamespace(name="Made-up V", major=7, minor=0)
    for name, value in {
        "device_count": 1,
        "is_available": True,
        "get_arch_list": ["sm_70"],
        "get_device_properties": properties,
        "get_device_capability": (7, 0),
        "mem_get_info": (2**34, 2**35),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)


def test_a_card_too_old_for_bfloat16_computes_in_float16_and_says_why(one_card):
    found = by_name(devices.device_lines())
    assert found["cuda:0"].status == OK and "Made-up V, capability 7.0" in found["cuda:0"].value
    line = found["precision of cuda:0"]
    assert line.status == NOTE and line.value.startswith("auto takes float16: capability 7.0")
    assert "driver" in found and "CUDA devices" not in found
    assert found["precision of cpu"].status == OK


def test_a_card_that_cannot_be_asked_is_wrong_and_the_rest_is_told(one_card, monkeypatch):
    def broken(index):
        raise RuntimeError("CUDA error: device busy\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    found = by_name(devices.device_lines())
    assert found["cuda:0"].status == FAIL
    assert found["cuda:0"].value == "RuntimeError: CUDA error: device busy"
    assert "TF32" in found


@pytest.mark.parametrize(
    ("dtype", "capability", "status", "words"),
    [
        ("bfloat16", (8, 0), OK, "capability 8.0 has matrix units"),
        ("float32", (6, 1), NOTE, "capability 6.1 has no matrix units"),
        ("bfloat16", None, OK, "the processor has units"),
        ("float32", None, OK, "no units for bfloat16"),
    ],
)
def test_why_auto_takes_a_precision(dtype, capability, status, words):
    line = devices.precision_line("d", dtype, capability)
    assert line.status == status and f"auto takes {dtype}: " in line.value and words in line.value


def test_tf32_that_nobody_asked_for_is_to_note():
    line = devices.rounding_line("none", "tf32")
    assert (line.status, line.value) == (OK, "matrix products off, convolutions on")
    assert devices.rounding_line("tf32", "tf32").status == NOTE


# Tools.


def test_a_machine_without_a_compiler_is_to_note(tmp_path):
    nothing = {"which": lambda name: None, "include": str(tmp_path), "environment": {}}
    found = by_name(tools.compiler_lines(0, **nothing))
    assert (found["C++"].status, found["C++"].value) == (NOTE, "no g++")
    assert found["Python's headers"].status == NOTE and found["Triton"].status == OK
    assert "everything else does not" in found["C++"].advice
    assert by_name(tools.compiler_lines(1, **nothing))["Triton"].status == NOTE
    (tmp_path / "Python.h").write_text("")
    (tmp_path / "cxx").write_text("#!/bin/sh\necho made-up 1.0\necho more\n")
    (tmp_path / "cxx").chmod(0o755)
    there = {
        "which": {"my-cxx": str(tmp_path / "cxx")}.get,
        "include": str(tmp_path),
        "environment": {"CXX": "my-cxx"},
    }
    found = by_name(tools.compiler_lines(1, triton="3.8.0", **there))
    assert {line.status for line in found.values()} == {OK}
    assert (
        found["C++"].value == f"{tmp_path / 'cxx'} (made-up 1.0)" and found["Triton"].value == "3.8.0"
    )


@pytest.mark.parametrize(
    ("nccl", "gloo", "cards", "expected"),
    [("2.30.7", True, 8, (OK, OK)), (None, True, 1, (OK, OK)), (None, False, 2, (NOTE, NOTE))],
)
def test_what_several_processes_need(nccl, gloo, cards, expected):
    found = by_name(tools.process_library_lines(nccl, gloo, cards))
    assert (found["NCCL"].status, found["gloo"].status) == expected


def test_a_backend_that_stops_matplotlib_is_wrong(monkeypatch):
    line = tools.drawing_line({})
    assert line.status == OK and line.value.startswith("MPLBACKEND is not set")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = tools.drawing_line({"MPLBACKEND": "nonsense"})
    assert (line.status, line.advice) == (FAIL, "unset MPLBACKEND")
