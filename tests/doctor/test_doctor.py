"""star doctor's judgement of made-up machines: what is right, to note or wrong, and what to do."""

import sys
from types import SimpleNamespace

import pytest

from probes.doctor import folders, machine, threads, versions
from probes.doctor.lines import FAIL, NOTE, OK, Line, checked, presentable, size
from probes.doctor.versions import Package


def files(**texts):
    """A reader of made-up files, by path with _ for /."""
    return lambda path: texts.get(path.strip("/").replace("/", "_").replace(".", "_"))


def by_name(lines):
    return {line.name: line for line in lines}


# Lines.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/path/ann/.cache/star", "~/.cache/star"),
        ("/path/ann", "~"),
        ("cannot open '/path/ann/x': /path/ann", "cannot open '~/x': ~"),
        ("/a:/path/ann/b:file:///path/ann/c", "/a:~/b:file://~/c"),
        ("/path/anna/x /path/ann-2/y /mnt/ann2", "/path/anna/x /path/ann-2/y /mnt/ann2"),
        ("https://ann:secret@host/x", "https://host/x"),
        ("two\nlines\tand \x1b[31mred", "two lines and ?[31mred"),
        ("caf\udce9", "caf?"),
    ],
)
def test_what_is_shown_names_no_home_and_no_password_and_stays_in_its_line(text, expected):
    assert presentable(text, "/path/ann") == expected
    assert presentable("/a/b", "/") == "/a/b", "a home that is / names nobody"


def test_sizes_have_three_digits():
    assert [size(n) for n in (0, 999, 1000, 3.25 * 2**30, 1023 * 2**20, 2**50)] == [
        "0 B", "999 B", "0.977 KiB", "3.25 GiB", "0.999 GiB", "1 PiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [ValueError("no\nsuch"), SystemExit(3), MemoryError(), AssertionError()]
)
def test_a_check_that_raises_is_a_line_and_keeps_those_before(error):
    def check():
        yield Line("s", "first", OK, "1")
        raise error

    first, broken = checked("s", "whole", check)
    assert (first.name, first.status) == ("first", OK)
    assert (broken.name, broken.status) == ("whole", FAIL) and broken.advice
    assert broken.value.startswith(type(error).__name__) and "such" not in broken.value


def test_what_is_not_right_comes_with_advice():
    with pytest.raises(AssertionError, match="no advice"):
        Line("s", "n", NOTE, "v")


# Packages.


def line_of(package, source, tmp_path, monkeypatch, minimum="", version="1.2"):
    (tmp_path / f"{package.module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.module, raising=False)
    return versions.package_line(package, minimum, version=lambda name: version)


NEEDED, OPTIONAL = Package("odd-one", "odd_one"), Package("odd-one", "odd_one", "odd things")


@pytest.mark.parametrize(("package", "status"), [(NEEDED, FAIL), (OPTIONAL, NOTE)])
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "nms does not exist"),
        ("raise SystemExit('bye')", "bye"),
        ("x = (", "was never closed"),
    ],
)
def test_a_package_that_is_there_but_broken(package, status, source, why, tmp_path, monkeypatch):
    line = line_of(package, source, tmp_path, monkeypatch)
    assert line.status == status and why in line.value and line.value.startswith("1.2, cannot")
    assert "above, or pip install --force-reinstall odd-one" in line.advice
    assert ("no odd things" in line.advice) == bool(package.purpose)


def test_a_package_that_is_not_there_or_too_old(tmp_path, monkeypatch):
    missing = Package("gone", "gone_module", "parquet")
    line = versions.package_line(missing)
    assert (line.status, line.value) == (OK, "not installed: pip install gone (parquet)")
    line = versions.package_line(Package("gone", "gone_module"))
    assert (line.status, line.value, line.advice) == (FAIL, "not installed", "pip install gone")
    old = line_of(NEEDED, "__version__ = '2.10.1'", tmp_path, monkeypatch, minimum="2.11")
    assert old.status == FAIL and old.value == "2.10.1; star needs 2.11"
    assert old.advice == 'pip install "odd-one>=2.11"'
    right = line_of(NEEDED, "__version__ = '2.10.1+cu130'", tmp_path, monkeypatch, minimum="2.9")
    assert (right.status, right.value) == (OK, "2.10.1+cu130")
    unnamed = line_of(NEEDED, "", tmp_path, monkeypatch)
    assert (unnamed.status, unnamed.value) == (OK, "1.2")


@pytest.mark.parametrize(
    ("cuda", "hip", "expected"),
    [
        ("13.0", None, "2.14.1, built for CUDA 13.0, cuDNN 92400"),
        (None, None, "2.14.1, built for CPUs alone"),
        (None, "7.1", "2.14.1, ROCm 7.1"),
    ],
)
def test_what_torch_was_built_for(cuda, hip, expected):
    module = SimpleNamespace(
        __name__="torch",
        __version__="2.14.1",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 92400)),
    )
    line = versions.package_line(Package("torch", "torch"), load=lambda name: module)
    assert (line.status, line.value) == (OK, expected)


def test_the_program_says_where_it_runs_from():
    program, python = versions.program_lines()
    assert (
        "runs from" in program.value
        and str(machine.Path(versions.__file__).parents[2]) in program.value
    )
    assert sys.executable in python.value


# Machine.

INTEL = "processor\t: 0\nmodel name\t: Made-up 9\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected", "status"),
    [
        (INTEL, "AMX yes, AVX512-BF16 yes, AVX512 yes, AVX2 yes", OK),
        ("flags : fpu avx2\n", "AMX no, AVX512-BF16 no, AVX512 no, AVX2 yes", OK),
        ("flags : fpu sse4_2\n", "AMX no, AVX512-BF16 no, AVX512 no, AVX2 no", NOTE),
        ("Features : fp asimd bf16\n", "BF16 yes, SVE no, NEON yes", OK),
        ("", "not told by this system", OK),
    ],
)
def test_units_of_the_processor(cpuinfo, expected, status):
    found = by_name(machine.processor_lines(cpuinfo))["units"]
    assert (found.value, found.status) == (expected, status)


def test_units_that_torch_does_not_see_are_to_note():
    seen = {"AMX": False, "AVX512-BF16": True, "AVX512": True, "AVX2": True}
    line = machine.kernel_line(INTEL, seen, "AVX512")
    assert (line.status, line.value) == (NOTE, "AVX512 kernels; does not see AMX")
    line = machine.kernel_line("flags : avx2\n", dict.fromkeys(seen, False) | {"AVX2": True}, "AVX2")
    assert (line.status, line.value) == (OK, "AVX2 kernels")
    assert by_name(machine.processor_lines(INTEL))["name"].value == "Made-up 9"


MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
MEMORY = "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   6291456 kB\nHugePages_Free: 0\n"


def test_memory_and_the_limits_of_containers():
    found = by_name(machine.memory_lines(files(proc_meminfo=MEMORY), shared=(2**33, 2**32)))
    assert {line.status for line in found.values()} == {OK}
    assert found["available"].value == "6 GiB free of 8 GiB" and found["limit"].value == "none"
    short = MEMORY.replace("6291456", "524288")
    texts = {
        "proc_meminfo": short,
        "proc_self_cgroup": "0::/\n",
        "proc_self_mountinfo": MOUNTS,
        "sys_fs_cgroup_memory_max": "536870912\n",
    }
    found = by_name(machine.memory_lines(files(**texts), shared=(2**26, 2**25)))
    assert found["available"].status == NOTE and found["available"].value == "512 MiB free of 8 GiB"
    assert (found["limit"].status, found["limit"].value) == (NOTE, "512 MiB")
    assert (
        found["shared (/dev/shm)"].status == NOTE and "--shm-size" in found["shared (/dev/shm)"].advice
    )
    nothing = by_name(machine.memory_lines(lambda path: None))
    assert nothing["available"].value == "not told by this system" and nothing["limit"].status == OK


@pytest.mark.parametrize(
    ("own", "name", "text", "expected"),
    [
        ("0::/\n", "sys_fs_cgroup_memory_max", "max\n", None),
        ("0::/job\n", "sys_fs_cgroup_job_memory_max", "4096\n", 4096),
        ("4:memory:/\n", "sys_fs_cgroup_memory_memory_limit_in_bytes", "8192\n", 8192),
        ("4:memory:/\n", "sys_fs_cgroup_memory_memory_limit_in_bytes", f"{2**63 - 4096}\n", None),
    ],
)
def test_memory_limits_of_both_versions(own, name, text, expected):
    read = files(proc_self_cgroup=own, proc_self_mountinfo=MOUNTS, **{name: text})
    assert machine.memory_limit(read) == expected


# Threads and environment.


def test_cores_and_threads():
    line = threads.core_line(2, 4, 16, 1.5)
    assert (line.status, line.value) == (OK, "2 usable (of 16; affinity 4, quota 1.5)")
    assert threads.core_line(1, 4, 16, 0.5).status == NOTE
    assert threads.core_line(4, 4, 16, None).value.endswith("no quota)")
    assert threads.thread_line(2, 2, {}).status == OK
    line = threads.thread_line(16, 2, {})
    assert (line.status, line.advice) == (NOTE, "set OMP_NUM_THREADS=2")
    assert threads.thread_line(16, 2, {"MKL_NUM_THREADS": "16"}).advice == "unset MKL_NUM_THREADS"


def test_only_listed_variables_are_shown_with_who_set_them():
    given = {"OMP_NUM_THREADS": "3", "WANDB_API_KEY": "s1", "MPLBACKEND": "TkAgg", "HOME": "/path/ann"}
    before = {**given, "MPLBACKEND": "agg", "GOMP_SPINCOUNT": "1000"}
    now = {
        **before,
        "KMP_INIT_AT_FORK": "FALSE",
        "NCCL_TOKEN": "s2",
        "TORCH_X_KEY": "s3",
        "XOMP_A": "s4",
    }
    found = by_name(threads.environment_lines(now, given, before))
    assert {name: line.value for name, line in found.items()} == {
        "OMP_NUM_THREADS": "3 (set by you)",
        "OMP_WAIT_POLICY": "not set",
        "MPLBACKEND": "agg (set by this program; by you: TkAgg)",
        "GOMP_SPINCOUNT": "1000 (set by this program)",
        "KMP_INIT_AT_FORK": "FALSE (set by a package)",
        "NCCL_TOKEN": "set (not shown)",
        "TORCH_X_KEY": "set (not shown)",
    }
    untold = by_name(threads.environment_lines({"CUDA_VISIBLE_DEVICES": ""}, None, {}))
    assert untold["CUDA_VISIBLE_DEVICES"].value == "empty"


def test_the_environment_that_a_process_was_started_with():
    read = files(proc_self_environ="OMP_NUM_THREADS=2\0TORCH_LOGS=a=b\0")
    found = threads.given_environment(read)
    assert found["OMP_NUM_THREADS"] == "2" and found["TORCH_LOGS"] == "a=b"
    assert threads.given_environment(lambda path: None) is None


# Folders.


def test_a_cache_that_cannot_be_written_is_wrong_and_a_working_folder_to_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "file" / "cache"))
    line = folders.cache_line()
    assert (
        line.status == FAIL and "file/cache (not made yet): cannot be written (Not a dir" in line.value
    )
    assert line.advice == "set STAR_CACHE to a folder of yours"
    monkeypatch.setattr(folders.Path, "cwd", lambda: tmp_path / "file")
    assert folders.working_line().status == NOTE


def test_a_cache_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "a" / "b"))
    line = folders.cache_line()
    assert line.status == OK and "a/b (not made yet): can be written" in line.value
    assert folders.contents_line().value == "empty" and not list(tmp_path.iterdir())
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c" / "x").write_bytes(bytes(2048))
    (tmp_path / "a" / "b" / "y").write_bytes(bytes(1024))
    assert folders.contents_line().value == "2 files, 3 KiB"
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    line = folders.cache_line()
    assert line.status == NOTE and line.value.endswith("1 MiB free") and "make room" in line.advice
