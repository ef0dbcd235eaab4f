"""Workspaces, work directories and their locks."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed.base import config
from distributed.scratch.workspace import WorkSpace, is_locking_enabled, safe_unlink
from distributed.tests.environments import ROOT, run_here

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not restrict root")


@pytest.fixture
def base(tmp_path):
    return tmp_path / "scratch"


@pytest.fixture
def workspace(base):
    return WorkSpace(str(base))


def names(base: Path) -> set[str]:
    """Return the names in a workspace except its own lock files."""
    return set(os.listdir(base)) - {"global.lock", "purge.lock"}


@contextmanager
def process(script: str, *args: object):
    """Start another Python process with pipes as standard input and output."""
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


def test_a_workspace_creates_its_directory(base):
    workspace = WorkSpace(str(base / "deep"))
    assert workspace.base_dir == str(base / "deep")
    assert os.listdir(base / "deep") == []


def test_a_workspace_can_exist_already(base):
    assert WorkSpace(str(base)).base_dir == WorkSpace(str(base)).base_dir


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WorkSpace("here").base_dir == str(tmp_path / "here")


def test_a_work_dir_has_the_given_name(base, workspace):
    workdir = workspace.new_work_dir(name="foo")
    assert workdir.dir_path == str(base / "foo")
    assert names(base) == {"foo", "foo.dirlock"}
    workdir.release()


def test_work_dirs_with_a_prefix_have_different_names(workspace):
    workdirs = [workspace.new_work_dir(prefix="worker-") for _ in range(3)]
    found = {os.path.basename(workdir.dir_path) for workdir in workdirs}
    assert len(found) == 3
    assert all(name.startswith("worker-") for name in found)
    for workdir in workdirs:
        workdir.release()


def test_name_and_prefix_are_optional(base, workspace):
    workdir = workspace.new_work_dir()
    assert os.path.dirname(workdir.dir_path) == str(base)
    workdir.release()


def test_only_its_user_can_access_a_work_dir(workspace):
    workdir = workspace.new_work_dir(name="foo")
    assert stat.S_IMODE(os.stat(workdir.dir_path).st_mode) == 0o700
    workdir.release()


def test_name_and_prefix_exclude_each_other(workspace):
    with pytest.raises(ValueError, match="not both"):
        workspace.new_work_dir(name="a", prefix="b")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\0", ".a", "a.dirlock"])
def test_a_name_outside_the_workspace_is_refused(base, workspace, name):
    with pytest.raises(ValueError, match="not a valid name for a directory"):
        workspace.new_work_dir(name=name)
    assert names(base) == set()


def test_release_removes_the_directory_and_its_lock(base, workspace):
    workdir = workspace.new_work_dir(name="foo")
    (base / "foo/deep/down").mkdir(parents=True)
    (base / "foo/deep/down/file").write_text("x")
    workdir.release()
    assert names(base) == set()


def test_release_twice_is_harmless(workspace):
    first = workspace.new_work_dir(name="foo")
    first.release()
    second = workspace.new_work_dir(name="foo")
    first.release()
    assert os.path.isdir(second.dir_path)
    second.release()


def test_a_work_dir_is_released_on_garbage_collection(base, workspace):
    workdir = workspace.new_work_dir(name="foo")
    del workdir
    gc.collect()
    assert names(base) == set()


def test_a_process_that_ends_removes_its_directory(base):
    run_here(
        "import sys; from distributed.diskutils import WorkSpace\n"
        "workdir = WorkSpace(sys.argv[1]).new_work_dir(name='foo')",
        base,
    )
    assert names(base) == set()


def test_a_name_in_use_is_an_error(workspace):
    workdir = workspace.new_work_dir(name="foo")
    with pytest.raises(FileExistsError, match=r"foo.*in use by another process or made by hand"):
        workspace.new_work_dir(name="foo")
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_a_directory_made_by_hand_is_neither_used_nor_purged(base, workspace):
    (base / "mine").mkdir()
    with pytest.raises(FileExistsError):
        workspace.new_work_dir(name="mine")
    workspace.new_work_dir().release()
    assert names(base) == {"mine"}


def test_the_directory_of_a_crashed_process_is_purged(base, caplog):
    run_here(CRASH, base, "stale")
    assert names(base) == {"stale", "stale.dirlock"}
    with caplog.at_level(logging.INFO, logger="distributed.diskutils"):
        workdir = WorkSpace(str(base)).new_work_dir(name="fresh")
    assert names(base) == {"fresh", "fresh.dirlock"}
    assert f"Found stale lock file and directory '{base / 'stale'}', purging" in caplog.text
    workdir.release()


def test_the_directory_name_of_a_crashed_process_can_be_reused(base):
    run_here(CRASH, base, "foo")
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert os.listdir(workdir.dir_path) == []
    workdir.release()


def test_a_lock_without_a_directory_is_purged(base, workspace):
    (base / "loose.dirlock").touch()
    assert workspace._purge_leftovers() == [str(base / "loose")]
    assert names(base) == set()


@pytest.mark.parametrize("lock", ["...dirlock", "..dirlock", ".dirlock", "....dirlock"])
def test_a_lock_file_whose_path_is_outside_the_workspace_is_ignored(tmp_path, base, lock):
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


def test_a_directory_of_this_process_is_not_purged(base):
    workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert WorkSpace(str(base))._purge_leftovers() == []
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_the_directory_of_another_process_is_purged_only_after_its_death(base, workspace):
    with process(HOLD, base, "theirs") as child:
        assert child.stdout.readline() == "made\n"
        assert workspace._purge_leftovers() == []
        assert (base / "theirs/data").exists()
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        assert workspace._purge_leftovers() == [str(base / "theirs")]
    assert names(base) == set()


def test_a_directory_in_use_by_a_forked_child_of_a_dead_process_is_not_purged(base, workspace):
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
    assert run_here(script, base).stdout == "True"
    assert names(base) == set()


def test_release_unlocks_although_a_forked_child_has_the_lock_file_open(base):
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
    run_here(script, base)
    assert names(base) == set()


def test_only_one_process_purges_at_a_time(base, workspace):
    run_here(CRASH, base, "stale")
    with open(base / "purge.lock", "a") as purging:
        fcntl.flock(purging, fcntl.LOCK_EX)
        assert workspace._purge_leftovers() == []
        workdir = workspace.new_work_dir(name="fresh")
        assert names(base) == {"stale", "stale.dirlock", "fresh", "fresh.dirlock"}
    workdir.release()


def test_a_removed_workspace_is_recreated(base, workspace):
    base.rmdir()
    workdir = workspace.new_work_dir(name="foo")
    assert os.path.isdir(workdir.dir_path)
    workdir.release()


def test_concurrent_processes_neither_lose_nor_leave_directories(base):
    # Half of the directories are abandoned without release, as by a crash, so that all processes
    # purge concurrently.
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
    with ThreadPoolExecutor(4) as pool:
        outputs = [done.stdout for done in pool.map(lambda _: run_here(script, base), range(4))]
    assert outputs == ["done"] * 4
    WorkSpace(str(base))._purge_leftovers()
    assert names(base) == set()


def test_a_file_that_cannot_be_removed_is_logged_and_removed_later(base, workspace, caplog):
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
    """Make the files in a directory impossible to remove, even for root."""
    chattr = ["chattr", "+i"] if os.geteuid() == 0 else ["chmod", "a-w"]
    undo = ["chattr", "-i"] if os.geteuid() == 0 else ["chmod", "u+w"]
    try:
        subprocess.run([*chattr, directory], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root can remove every file on this file system")
    try:
        yield
    finally:
        subprocess.run([*undo, directory], check=True, timeout=60)


def test_without_locking_nothing_is_locked_or_purged(base):
    run_here(CRASH, base, "stale")
    with config.set({"distributed.worker.use-file-locking": False}):
        assert not is_locking_enabled()
        workdir = WorkSpace(str(base)).new_work_dir(name="foo")
    assert names(base) == {"stale", "stale.dirlock", "foo"}
    workdir.release()
    assert names(base) == {"stale", "stale.dirlock"}


def test_a_workspace_where_locking_fails_is_used_without_locks(base, workspace, caplog):
    (base / "purge.lock").mkdir()
    workdir = workspace.new_work_dir(name="foo")
    assert names(base) == {"foo"}
    assert "Could not lock" in caplog.text
    assert "distributed.worker.use-file-locking" in caplog.text
    workdir.release()
    assert names(base) == set()


@as_root
def test_a_directory_of_another_user_is_not_used(tmp_path):
    theirs = tmp_path / "scratch"
    theirs.mkdir()
    os.chown(theirs, 12345, -1)
    theirs.chmod(0o777)
    assert WorkSpace(str(theirs)).base_dir == f"{theirs}-0"


@as_root
def test_a_symbolic_link_of_another_user_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    link = tmp_path / "scratch"
    link.symlink_to(target)
    os.lchown(link, 12345, -1)
    assert WorkSpace(str(link)).base_dir == f"{link}-0"


AS_ANOTHER_USER = """
import os, sys
from distributed.diskutils import WorkSpace, is_locking_enabled
is_locking_enabled()  # reads configuration files before losing permission to do so
os.setuid(12345)
try:
    print(WorkSpace(sys.argv[1]).base_dir, end="")
except PermissionError as exc:
    print("PermissionError:", exc, end="")
"""


@pytest.fixture
def public(tmp_path_factory):
    """A directory in which all users can create files, like /tmp."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


@as_root
def test_a_directory_that_is_not_writable_is_not_used(public):
    (public / "scratch").mkdir()
    assert run_here(AS_ANOTHER_USER, public / "scratch").stdout == f"{public}/scratch-12345"


@as_root
def test_a_directory_of_root_that_all_users_can_write_is_used_if_sticky(public):
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o1777)
    assert run_here(AS_ANOTHER_USER, public / "scratch").stdout == f"{public}/scratch"


@as_root
def test_a_directory_in_which_all_users_can_replace_files_is_not_used(public):
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o777)
    assert run_here(AS_ANOTHER_USER, public / "scratch").stdout == f"{public}/scratch-12345"


@as_root
def test_a_writable_directory_is_used_if_its_parent_is_not_writable(public):
    public.chmod(0o755)
    (public / "scratch").mkdir()
    (public / "scratch").chmod(0o777)
    assert run_here(AS_ANOTHER_USER, public / "scratch").stdout == f"{public}/scratch"


@as_root
def test_two_unusable_directories_are_an_error_with_a_suggestion(public):
    for name in ("scratch", "scratch-12345"):
        (public / name).mkdir()
        os.chown(public / name, 54321, -1)
    message = run_here(AS_ANOTHER_USER, public / "scratch").stdout
    assert message.startswith("PermissionError: Cannot create scratch directories in")
    assert "temporary-directory" in message


@not_as_root
def test_a_directory_that_cannot_be_created_is_an_error_with_a_suggestion(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="temporary-directory"):
            WorkSpace(str(tmp_path / "scratch"))
    finally:
        tmp_path.chmod(0o700)


def leave(base: Path, name: str) -> Path:
    """Make what a killed process leaves behind; return its directory."""
    (base / f"{name}.dirlock").touch()
    directory = base / name
    directory.mkdir()
    (directory / "file").touch()
    return directory


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_nothing_is_purged_where_other_users_can_write(base, caplog, mode):
    caplog.set_level("INFO")
    base.mkdir(exist_ok=True)
    directory = leave(base, "stale")
    base.chmod(mode)
    workspace = WorkSpace(str(base))
    workdir = workspace.new_work_dir(name="fresh")
    assert workspace._purge_leftovers() == []
    assert (directory / "file").exists()
    assert "Other users can write to" in caplog.text
    assert caplog.text.count("chmod go-w") == 1
    # Nor is it locked, because another user could keep the lock for ever.
    assert names(base) == {"stale", "stale.dirlock", "fresh"}
    workdir.release()
    assert names(base) == {"stale", "stale.dirlock"}


@as_root
def test_nothing_is_purged_in_the_space_of_another_user(public):
    space = public / "scratch"
    space.mkdir()
    directory = leave(space, "stale")
    space.chmod(0o1777)
    os.chown(space, 12345, -1)
    WorkSpace(str(space)).new_work_dir(name="fresh").release()
    assert (directory / "file").exists()
    assert sorted(os.listdir(public)) == ["scratch", "scratch-0"]


def test_a_new_workspace_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        workspace = WorkSpace(str(tmp_path / "new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(workspace.base_dir).st_mode) == 0o755


def test_a_stale_lock_whose_directory_is_a_link_removes_nothing(tmp_path, base, workspace):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (base / "stale.dirlock").touch()
    (base / "stale").symlink_to(elsewhere)
    assert workspace._purge_leftovers() == []
    assert (elsewhere / "file").exists()
    assert (base / "stale").is_symlink()


def test_a_link_inside_a_stale_directory_is_removed_and_not_followed(tmp_path, base, workspace):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (leave(base, "stale") / "link").symlink_to(elsewhere)
    assert workspace._purge_leftovers() == [str(base / "stale")]
    assert (elsewhere / "file").exists()


def test_a_lock_file_with_another_name_elsewhere_is_ignored(tmp_path, base, workspace):
    precious = tmp_path / "precious"
    precious.touch()
    os.link(precious, base / "stale.dirlock")
    (base / "stale").mkdir()
    assert workspace._purge_leftovers() == []
    assert (base / "stale").is_dir()


@as_root
def test_a_directory_of_another_user_is_not_removed(base, workspace, caplog):
    directory = leave(base, "stale")
    os.chown(directory, 12345, -1)
    assert workspace._purge_leftovers() == []
    assert (directory / "file").exists()
    assert "not a directory that this user created here" in caplog.text


@pytest.mark.parametrize("name", ["global.lock", "purge.lock"])
def test_the_locks_of_a_workspace_follow_no_link(tmp_path, base, workspace, name):
    (base / name).symlink_to(tmp_path / "target")
    workspace.new_work_dir(name="foo").release()
    assert not (tmp_path / "target").exists()


def test_release_removes_nothing_from_a_directory_that_took_the_place_of_the_workspace(
    base, workspace
):
    workdir = workspace.new_work_dir(name="foo")
    base.rename(f"{base}-moved")
    (base / "foo").mkdir(parents=True)
    (base / "foo.dirlock").touch()
    workdir.release()
    assert (base / "foo").is_dir()
    assert (base / "foo.dirlock").exists()


def test_a_directory_that_its_owner_made_again_is_removed_at_release(base, workspace):
    workdir = workspace.new_work_dir(name="foo")
    (base / "foo").rmdir()
    (base / "foo").mkdir()
    workdir.release()
    assert names(base) == set()


def test_a_directory_whose_lock_file_was_removed_by_a_cleaner_is_removed_at_release(
    base, workspace
):
    workdir = workspace.new_work_dir(name="foo")
    (base / "foo.dirlock").unlink()
    workdir.release()
    assert names(base) == set()


@as_root
def test_a_workspace_that_another_user_replaced_is_refused(base, workspace):
    base.rmdir()
    base.mkdir()
    os.chown(base, 12345, -1)
    with pytest.raises(PermissionError, match="replaced by a directory of user 12345"):
        workspace.new_work_dir(name="foo")


def test_safe_unlink_removes_a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    safe_unlink(str(path))
    assert not path.exists()


def test_safe_unlink_ignores_a_missing_file(tmp_path, caplog):
    safe_unlink(str(tmp_path / "gone"))
    assert caplog.text == ""


def test_safe_unlink_logs_a_file_that_cannot_be_removed(tmp_path, caplog):
    safe_unlink(str(tmp_path))
    assert "Failed to remove" in caplog.text
    assert tmp_path.exists()
