"""Run a dask program on dask.distributed as released, and on this core over tcp and unix.

``make dask`` runs this.  It creates two environments in a directory (by default ``.dask``),
installs ``dask[distributed]`` into both and the grafted wheel over one of them, and runs program.py
in each.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import venv
from pathlib import Path

from distributed.graft import TESTED_VERSIONS, graft

PROGRAM = Path(__file__).parent / "program.py"
VERSION = TESTED_VERSIONS[-1]
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def environment(path: Path) -> Path:
    """Return the interpreter of an environment with dask[distributed]; create it if needed."""
    python = path / "bin" / "python"
    complete = path / f"complete-{VERSION}"
    if not complete.exists():
        print(f"Creating {path} ...", flush=True)
        if path.exists() and not (path / "pyvenv.cfg").exists():
            raise SystemExit(f"{path} is not an environment of this program: use --directory")
        shutil.rmtree(path, ignore_errors=True)
        venv.create(path, with_pip=True)
        needed = [f"dask[array,diagnostics,distributed]=={VERSION}"]
        subprocess.run([python, *PIP, *needed], check=True)
        complete.touch()
    return python


def run(python: Path, protocol: str) -> float:
    """Run the program, show what it prints, and return the seconds that it measured."""
    command = [str(python), str(PROGRAM), protocol]
    with subprocess.Popen(
        command, cwd=PROGRAM.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if last:
                print(f"  {last}", flush=True)
            last = line.rstrip("\n")
    if process.returncode:
        raise SystemExit(f"{PROGRAM.name} over {protocol} failed with {process.returncode}")
    return float(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path(".dask"))
    directory = parser.parse_args().directory.resolve()
    released = environment(directory / "released")
    grafted = environment(directory / "grafted")
    wheel = graft(VERSION, directory)
    subprocess.run([grafted, *PIP, "--no-deps", "--force-reinstall", str(wheel)], check=True)
    subprocess.run([grafted, "-m", "pip", "check"], check=True)

    times = {}
    for title, python, protocol in (
        (f"dask.distributed {VERSION} as released, tcp", released, "tcp"),
        ("the same on this core, tcp", grafted, "tcp"),
        ("the same on this core, unix", grafted, "unix"),
    ):
        print(f"\n{title}", flush=True)
        times[title] = run(python, protocol)
    print("\nSeconds for the computations:")
    for title, seconds in times.items():
        print(f"  {seconds:6.2f}  {title}")


if __name__ == "__main__":
    main()
