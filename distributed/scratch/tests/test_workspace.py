"""What `distributed.diskutils` promises."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import distributed
from distributed.base import config
from distributed.scratch.workspace import WorkSpace, is_locking_enabled, safe_unlink

ROOT = str(Path(distributed.__file__).parent.parent)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")


@pytest.fixture
def base(tmp_path):
    return tmp_path / "scratch"


def names(base: Path) -> set[str]:
    """What is in a workspace besides its own lock files."""
    return set(os.listdir(base)) - {"global.lock", "purge.lock"}


@contextmanager
def process(script: str, *args: object):
    """Another Python process, whose standard streams are pipes."""
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def run(script: str, *args: object) -> str:
    """The output of another Python process that ends well."""
    with process(script, *args) as child:
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0
    return output


HOLD = """
import sys
from distributed.diskutils import WorkSpace
workdir = WorkSpace(sys.argv[1]).new_work_dir(name=sys.argv[2])
open(workdir.dir_path + "/data", "w").close()
print("made", flush=True)
sys.stdin.read()
"""

CRASH = """
import os, sys
from distributed.diskutils import WorkSpace
workdir = WorkSpace(sys.argv[1]).new_work_dir(name=sys.argv[2])
os.makedirs(workdir.dir_path + "/deep/down")
os._exit(0)
"""


def test_a_workspace_makes_its_directory(base):
    workspace = WorkSpace(str(base / "deep"))
    assert workspace.base_dir == str(base / "deep")
    assert os.listdir(base / "deep") == []


def test_a_workspace_may_be_there_already(base):
    assert WorkSpace(str(base)).base_dir == WorkSpace(str(base)).base_dir


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WorkSpace("here").base_dir == str(tmp_path / "here")


def test_a_work_dir_has_the_name_that_it_was_given(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert workdir.dir_path == str(base / "foo")
    assert names(base) == {"foo", "foo.dirlock"}
    workdir.release()


def test_a_prefix_makes_names_that_differ(base):
    workspace = WorkSpace(str(base))
    workdirs = [workspace.new_work_dir(prefix="worker-") for _ in range(3)]
    found = {os.path.basename(workdir.dir_path) for workdir in workdirs}
    assert len(found) == 3
    assert all(name.startswith("worker-") for name in found)
    for workdir in workdirs:
        workdir.release()


def test_neither_name_nor_prefix_is_needed(base):
    workdir = WorkSpace(str(base)).new_work_dir()
    assert os.path.dirname(workdir.dir_path) == str(base)
    workdir.release()


def test_only_its_user_can_look_into_a_work_dir(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert stat.S_IMODE(os.stat(workdir.dir_path).st_mode) == 0o700
    workdir.release()


def test_name_and_prefix_exclude_each_other(base):
    with pytest.raises(ValueError, match="not both"):
        WorkSpace(str(base)).new_work_dir(name="a", prefix="b")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\0", ".a", "a.dirlock"])
def test_a_name_that_leads_elsewhere_is_refused(base, name):
    with pytest.raises(ValueError, match="not a valid name for a directory"):
        WorkSpace(str(base)).new_work_dir(name=name)
    assert names(base) == set()


def test_release_removes_the_directory_and_its_lock(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    (base / "foo/deep/down").mkdir(parents=True)
    (base / "foo/deep/down/file").write_text("x")
    workdir.release()
    assert names(base) == set()


def test_release_twice_is_harmless(base):
    workspace = WorkSpace(str(base))
    first = workspace.new_work_dir(name="foo")
    first.release()
    second = workspace.new_work_dir(name="foo")
    first.release()
    assert os.path.isdir(second.dir_path)
    second.release()


def test_a_work_dir_that_is_forgotten_is_released(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    del workdir
    gc.collect()
    assert names(base) == set()


def test_a_process_that_ends_removes_its_directory(base):
    run(
        "import sys; from distributed.diskutils import WorkSpace\n"
        "workdir = WorkSpace(sys.argv[1]).new_work_dir(name='foo')",
        base,
    )
    assert names(base) == set()


def test_a_name_in_use_is_an_error(base):
    workspace = WorkSpace(str(base))
    workdir = workspace.new_work_dir(name="foo")
    with pytest.raises(FileExistsError, match=r"foo.*in use by another process or made by hand"):
        workspace.new_work_dir(name="foo")
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_what_was_made_by_hand_is_neither_taken_nor_purged(base):
    workspace = WorkSpace(str(base))
    (base / "mine").mkdir()
    with pytest.raises(FileExistsError):
        workspace.new_work_dir(name="mine")
    workspace.new_work_dir().release()
    assert names(base) == {"mine"}


def test_what_a_crashed_process_left_is_purged(base, caplog):
    run(CRASH, base, "stale")
    assert names(base) == {"stale", "stale.dirlock"}
    with caplog.at_level(logging.INFO, logger="distributed.diskutils"):
        workdir = WorkSpace(str(base)).new_work_dir(name="fresh")
    assert names(base) == {"fresh", "fresh.dirlock"}
    assert f"Found stale lock file and directory '{base / 'stale'}', purging" in caplog.text
    workdir.release()


def test_the_name_of_a_crashed_process_can_be_used_again(base):
    run(CRASH, base, "foo")
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert os.listdir(workdir.dir_path) == []
    workdir.release()


def test_a_lock_without_a_directory_is_purged(base):
    workspace = WorkSpace(str(base))
    (base / "loose.dirlock").touch()
    assert workspace._purge_leftovers() == [str(base / "loose")]
    assert names(base) == set()


@pytest.mark.parametrize("lock", ["...dirlock", "..dirlock", ".dirlock", "....dirlock"])
def test_a_lock_file_whose_name_leads_out_of_the_workspace_is_ignored(tmp_path, base, lock):
    precious = tmp_path / "precious"
    precious.write_text("data of the parent directory")
    base.mkdir()
    (base / lock).touch()
    workdir = WorkSpace(base).new_work_dir(name="worker-1")
    assert precious.exists()
    assert os.path.isdir(workdir.dir_path)
    assert (base / lock).exists()
    workdir.release()


@pytest.mark.parametrize("kind", ["link", "directory", "named pipe"])
def test_a_lock_that_is_not_a_regular_file_is_ignored(tmp_path, base, kind):
    (base / "other").mkdir(parents=True)
    lock = base / "other.dirlock"
    if kind == "link":
        (tmp_path / "elsewhere").touch()
        lock.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    WorkSpace(base).new_work_dir(name="worker-1").release()
    assert (base / "other").is_dir()


@as_root
def test_a_lock_file_of_another_user_is_ignored(base):
    (base / "other").mkdir(parents=True)
    lock = base / "other.dirlock"
    lock.touch()
    os.chown(lock, 65534, 65534)
    WorkSpace(base).new_work_dir(name="worker-1").release()
    assert (base / "other").is_dir()
    assert lock.exists()


def test_what_this_process_uses_is_not_purged(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert WorkSpace(str(base))._purge_leftovers() == []
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_what_another_process_uses_is_purged_only_after_its_death(base):
    workspace = WorkSpace(str(base))
    with process(HOLD, base, "theirs") as child:
        assert child.stdout.readline() == "made\n"
        assert workspace._purge_leftovers() == []
        assert (base / "theirs/data").exists()
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        assert workspace._purge_leftovers() == [str(base / "theirs")]
    assert names(base) == set()


def test_what_a_forked_child_of_a_dead_process_still_uses_is_not_purged(base):
    script = """
import os, sys
from distributed.diskutils import WorkSpace
workdir = WorkSpace(sys.argv[1]).new_work_dir(name="family")
if os.fork():
    os._exit(0)
print("child", flush=True)
sys.stdin.read()
os._exit(0)
"""
    workspace = WorkSpace(str(base))
    with process(script, base) as parent:
        assert parent.stdout.readline() == "child\n"
        parent.wait(60)
        assert workspace._purge_leftovers() == []
        assert names(base) == {"family", "family.dirlock"}
        parent.stdin.close()
        assert parent.stdout.read() == ""
        assert workspace._purge_leftovers() == [str(base / "family")]


def test_a_forked_child_does_not_remove_its_parents_directory(base):
    script = """
import os, sys
from distributed.diskutils import WorkSpace
workdir = WorkSpace(sys.argv[1]).new_work_dir(name="family")
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    print(os.path.isdir(workdir.dir_path), end="")
"""
    assert run(script, base) == "True"
    assert names(base) == set()


def test_releasing_frees_the_lock_although_a_forked_child_lives(base):
    script = """
import os, sys
from distributed.diskutils import WorkSpace
workspace = WorkSpace(sys.argv[1])
workdir = workspace.new_work_dir(name="family")
blocked, unblock = os.pipe()
pid = os.fork()
if not pid:
    os.close(unblock)
    os.read(blocked, 1)
    os._exit(0)
workdir.release()
workspace.new_work_dir(name="family").release()
os.close(unblock)
os.waitpid(pid, 0)
"""
    run(script, base)
    assert names(base) == set()


def test_purging_is_left_to_the_one_who_is_at_it(base):
    workspace = WorkSpace(str(base))
    run(CRASH, base, "stale")
    with open(base / "purge.lock", "a") as purging:
        fcntl.flock(purging, fcntl.LOCK_EX)
        assert workspace._purge_leftovers() == []
        workdir = workspace.new_work_dir(name="fresh")
        assert names(base) == {"stale", "stale.dirlock", "fresh", "fresh.dirlock"}
    workdir.release()


def test_a_workspace_that_a_cleaner_has_removed_is_made_again(base):
    workspace = WorkSpace(str(base))
    base.rmdir()
    workdir = workspace.new_work_dir(name="foo")
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_many_processes_at_once_neither_lose_nor_leave_a_directory(base):
    # Half of all directories are given up without release, as by a crash, so that all processes
    # purge all the time.
    script = """
import os, sys
from distributed.diskutils import WorkSpace
workspace = WorkSpace(sys.argv[1])
for i in range(100):
    workdir = workspace.new_work_dir(prefix="p-")
    path = workdir.dir_path + "/data"
    with open(path, "w") as file:
        file.write(str(i))
    workspace._purge_leftovers()
    with open(path) as file:
        assert file.read() == str(i)
    if i % 2:
        workdir.release()
        assert not os.path.exists(workdir.dir_path)
    else:
        os.close(workdir._finalizer.detach()[2][3])
print("done", end="")
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(base)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [child.communicate(timeout=100)[0] for child in children]
    assert outputs == ["done"] * 4
    WorkSpace(str(base))._purge_leftovers()
    assert names(base) == set()


def test_what_cannot_be_removed_is_logged_and_tried_again(base, caplog, monkeypatch):
    workspace = WorkSpace(str(base))
    workdir = workspace.new_work_dir(name="foo")
    stubborn = base / "foo/stubborn"
    stubborn.touch()
    with undeletable(base / "foo"):
        workdir.release()
        assert stubborn.exists()
        assert "Failed to remove" in caplog.text
        assert str(stubborn) in caplog.text
        assert names(base) == {"foo", "foo.dirlock"}
    assert workspace._purge_leftovers() == [str(base / "foo")]


@contextmanager
def undeletable(directory: Path):
    """Keep even root from removing what is in a directory."""
    chattr = ["chattr", "+i"] if os.geteuid() == 0 else ["chmod", "a-w"]
    undo = ["chattr", "-i"] if os.geteuid() == 0 else ["chmod", "u+w"]
    try:
        subprocess.run([*chattr, directory], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root may remove everything on this file system")
    try:
        yield
    finally:
        subprocess.run([*undo, directory], check=True, timeout=60)


def test_without_locking_nothing_is_locked_or_purged(base):
    run(CRASH, base, "stale")
    with config.set({"distributed.worker.use-file-locking": False}):
        assert not is_locking_enabled()
        workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert names(base) == {"stale", "stale.dirlock", "foo"}
    workdir.release()
    assert names(base) == {"stale", "stale.dirlock"}


def test_a_place_where_locks_fail_is_used_without_them(base, caplog):
    workspace = WorkSpace(str(base))
    (base / "purge.lock").mkdir()
    workdir = workspace.new_work_dir(name="foo")
    assert names(base) == {"foo"}
    assert "Could not lock" in caplog.text
    assert "distributed.worker.use-file-locking" in caplog.text
    workdir.release()
    assert names(base) == set()


@as_root
def test_a_place_of_another_user_is_not_used(tmp_path):
    theirs = tmp_path / "scratch"
    theirs.mkdir()
    os.chown(theirs, 12345, -1)
    theirs.chmod(0o777)
    assert WorkSpace(str(theirs)).base_dir == f"{theirs}-0"


@as_root
def test_a_link_of_another_user_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    link = tmp_path / "scratch"
    link.symlink_to(target)
    os.lchown(link, 12345, -1)
    assert WorkSpace(str(link)).base_dir == f"{link}-0"


AS_SOMEBODY_ELSE = """
import os, sys
from distributed.diskutils import WorkSpace, is_locking_enabled
is_locking_enabled()  # reads configuration files that the other user may not be able to read
os.setuid(12345)
try:
    print(WorkSpace(sys.argv[1]).base_dir, end="")
except PermissionError as exc:
    print("PermissionError:", exc, end="")
"""


@pytest.fixture
def public(tmp_path_factory):
    """A directory in which all users can make something, as /tmp is."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


@as_root
def test_a_place_that_is_not_writable_is_not_used(public):
    (public / "scratch").mkdir()
    assert run(AS_SOMEBODY_ELSE, public / "scratch") == f"{public}/scratch-12345"


@as_root
def test_a_place_that_root_has_opened_to_all_is_used_if_it_is_sticky(public):
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o1777)
    assert run(AS_SOMEBODY_ELSE, public / "scratch") == f"{public}/scratch"


@as_root
def test_a_place_in_which_anybody_can_replace_anything_is_not_used(public):
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o777)
    assert run(AS_SOMEBODY_ELSE, public / "scratch") == f"{public}/scratch-12345"


@as_root
def test_a_writable_place_is_used_if_there_can_be_no_other(public):
    public.chmod(0o755)
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o777)
    assert run(AS_SOMEBODY_ELSE, public / "scratch") == f"{public}/scratch"


@as_root
def test_no_usable_place_is_an_error_that_says_what_to_change(public):
    for name in ("scratch", "scratch-12345"):
        (public / name).mkdir()
        os.chown(public / name, 54321, -1)
    message = run(AS_SOMEBODY_ELSE, public / "scratch")
    assert message.startswith("PermissionError: Cannot make scratch directories in")
    assert "temporary-directory" in message


@not_as_root
def test_a_place_that_cannot_be_made_is_an_error_that_says_what_to_change(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="temporary-directory"):
            WorkSpace(str(tmp_path / "scratch"))
    finally:
        tmp_path.chmod(0o700)


def test_safe_unlink_removes_a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    safe_unlink(str(path))
    assert not path.exists()


def test_safe_unlink_does_not_mind_a_file_that_is_gone(tmp_path, caplog):
    safe_unlink(str(tmp_path / "gone"))
    assert caplog.text == ""


def test_safe_unlink_logs_a_file_that_stays(tmp_path, caplog):
    safe_unlink(str(tmp_path))
    assert "Failed to remove" in caplog.text
    assert tmp_path.exists()
