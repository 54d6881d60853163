"""Cores that a process may use, and how its threads wait: on made-up machines, never on this one."""

import pytest

from star.base.threads import (
    compute_threads,
    cpu_quota,
    thread_settings,
    usable_cores,
    without_settings,
)

SIXTEEN = range(16)
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHERS = (
    "33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    "34 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n"
)


def machine(mounts, own, **quotas):
    """A reader of made-up files; ``quotas`` are given by folder below /sys/fs/cgroup."""
    files = {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": own}
    return {**files, **{f"/sys/fs/cgroup{name}": text for name, text in quotas.items()}}.get


def v2(own, **quotas):
    return machine(V2 + V1_OTHERS.splitlines()[-1], f"0::{own}\n", **quotas)


def v1(own, quota, period="100000\n", place=""):
    folder = f"/cpu,cpuacct{place}"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}
    return machine(V1_OTHERS + V1, f"5:memory:/x\n4:cpu,cpuacct:{own}\n1:name=systemd:/y\n", **files)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (v2("/", **{"/cpu.max": "150000 100000\n"}), 1.5),
        (v2("/", **{"/cpu.max": "max 100000\n"}), None),
        (v2("/path/job", **{"/path/job/cpu.max": "400000 100000\n"}), 4.0),
        # The narrowest of the nested ones holds, wherever it is.
        (v2("/tmp/b/c", **{"/tmp/cpu.max": "4 2", "/tmp/b/cpu.max": "max 9"}), 2.0),
        (v2("/tmp/b/c", **{"/tmp/cpu.max": "9 2", "/tmp/b/c/cpu.max": "9 3"}), 3.0),
        (v2("/tmp/b", **{"/tmp/cpu.max": "max 100000", "/tmp/b/cpu.max": "50000 100000"}), 0.5),
        (v2("/a", **{"/a/cpu.max": "100000 0"}), None),
        (v2("/a", **{"/a/cpu.max": "100000"}), None),
        (v2("/a", **{"/a/cpu.max": ""}), None),
        (v2("/a", **{"/a/cpu.max": "many few"}), None),
        (v2("/a"), None),
        # A container sees the host's path, or one through "..", of what is its own root.
        (v2("/../other", **{"/cpu.max": "300000 100000"}), 3.0),
        (v1("/docker/1a2b", "250000\n"), 2.5),
        (v1("/", "-1\n"), None),
        (v1("/", "100000", "0"), None),
        (v1("/", "100000", None), None),
        (v1("/jobs/7", "200000", "50000", place="/jobs"), 4.0),
        (machine(V2, None), None),
        (machine(None, "0::/\n"), None),
        (machine("garbage\n- cgroup2\n", "garbage\n:\n"), None),
    ],
)  # fmt: skip
def test_the_quota_is_that_of_the_narrowest_cgroup(read, expected):
    assert cpu_quota(read) == expected


def test_a_mount_that_shows_a_part_of_the_hierarchy_is_read_from_there():
    mount = "40 31 0:29 /docker/1a2b /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    quotas = {
        "/cpu/cpu.cfs_quota_us": "600000",
        "/cpu/cpu.cfs_period_us": "100000",
        "/cpu" + "/inner/cpu.cfs_quota_us": "150000",
        "/cpu" + "/inner/cpu.cfs_period_us": "100000",
    }
    for own, expected in (
        ("/docker/1a2b", 6.0),
        ("/docker/1a2b" + "/inner", 1.5),
        ("/docker/1a2", 6.0),
    ):
        assert cpu_quota(machine(mount, f"3:cpu:{own}\n", **quotas)) == expected, own


def test_both_versions_side_by_side_hold_together():
    mounts = V1 + "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    quotas = {
        "/unified" + "/a/cpu.max": "700000 100000",
        "/cpu,cpuacct/b/cpu.cfs_quota_us": "300000",
        "/cpu,cpuacct/b/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(machine(mounts, "4:cpu,cpuacct:/b\n0::/a\n", **quotas)) == 3.0


@pytest.mark.parametrize(
    ("quota", "cores"), [("40000", 1), ("140000", 1), ("150000", 2), ("340000", 3), ("9900000", 16)]
)
def test_a_quota_counts_as_the_nearest_number_of_cores(quota, cores):
    assert usable_cores(SIXTEEN, v2("/", **{"/cpu.max": f"{quota} 100000"})) == cores


def test_without_a_quota_the_affinity_mask_is_all():
    assert usable_cores({3, 5, 9}, v2("/")) == 3
    assert usable_cores({7}, {}.get) == 1
    assert usable_cores() >= 1 and usable_cores() >= compute_threads() >= 1


def hyperthreads(read, cpus=16):
    """CPU n and n + 8 are one core."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {topology.format(cpu): f"{cpu % 8},{cpu % 8 + 8}\n" for cpu in range(cpus)}
    return lambda path: files.get(path) or read(path)


def test_threads_that_compute_are_one_a_core():
    free, quota = v2("/"), v2("/", **{"/cpu.max": "1200000 100000"})
    assert compute_threads(SIXTEEN, hyperthreads(free)) == 8
    assert compute_threads({0, 8, 1}, hyperthreads(free)) == 2
    assert usable_cores(SIXTEEN, hyperthreads(quota)) == 12
    assert compute_threads(SIXTEEN, hyperthreads(quota)) == 8
    assert compute_threads(SIXTEEN, quota) == 12


def count(environment, read, **options):
    return thread_settings(environment, cpus=SIXTEEN, read=read, **options).get("OMP_NUM_THREADS")


def test_a_number_of_threads_is_set_only_where_the_quota_leaves_fewer():
    six = v2("/", **{"/cpu.max": "600000 100000"})
    assert count({}, six) == "6" and count({}, hyperthreads(six)) == "6"
    assert count({}, v2("/")) is None  # OpenMP and MKL know the affinity mask themselves
    assert count({}, hyperthreads(v2("/", **{"/cpu.max": "1200000 100000"}))) is None
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert count({name: "12"}, six) is None, name
        assert count({name: "12"}, six, threads=3) == "3", name


def test_threads_wait_quietly_unless_the_user_has_said_how():
    settings = thread_settings({}, cpus={0}, read={}.get)
    assert settings["OMP_WAIT_POLICY"] == "passive"
    # Spinning for a whole time slice (the library's 300,000) is what this is against; no spinning at
    # all costs an idle machine.
    assert 0 < int(settings["GOMP_SPINCOUNT"]) <= 10_000
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        assert thread_settings({name: "7"}, cpus={0}, read={}.get) == {}, name


def test_a_number_that_is_asked_for_goes_to_every_library_and_is_not_cut():
    settings = thread_settings({"OMP_WAIT_POLICY": "active"}, threads=5, cpus={0}, read={}.get)
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert settings == dict.fromkeys(counts, "5") | {"MKL_DYNAMIC": "FALSE"}
    assert without_settings({**settings, "GOMP_SPINCOUNT": "1", "HOME": "/h"}) == {"HOME": "/h"}
