"""The versions that setup.cfg declares, tried: `make matrix` runs the tests with the oldest, the pinned and the newest.

Oldest means the lower bound of every direct requirement, so that a bound which no longer works is found here and not
by a user. EasyEdit's wheel is installed without its dependencies, as the Makefile does.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv"
EASYEDIT = "easyeditor==0.0.1.dev0"
PARALLEL = ["--numprocesses=logical", "--dist=loadfile", "--no-loadscope-reorder"]
# Session: interpreter, and how its requirements are chosen.
VERSIONS = {
    "oldest": ("3.10", ["--resolution", "lowest-direct"]),
    "pinned": ("3.11", ["--constraint", "constraints.txt"]),
    "between": ("3.12", ["--constraint", "constraints.txt"]),
    "newest": ("3.13", []),
}


def define(name: str, python: str, choice: list[str]) -> None:
    """Register a session that installs with `choice` and runs the tests, or what stands after `--`."""

    @nox.session(name=name, python=python)
    def run(session: nox.Session) -> None:
        # pip and setuptools are what some tests build and fetch wheels with.
        session.install(*choice, "--editable", ".[easyedit,test]", "pip>=23", "setuptools>=70.1")
        session.install("--no-deps", EASYEDIT)
        session.run("python", "-m", "pytest", *(session.posargs or PARALLEL))


for version, (interpreter, resolution) in VERSIONS.items():
    define(version, interpreter, resolution)
