"""Without the packages of the extra `audit` a study runs, and an audit says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WITHOUT = "import sys; sys.modules.update({name: None for name in ('statsmodels', 'matplotlib')});"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("import zerounlearn.study.measures, zerounlearn.study.spec; print('fine')", "fine"),
        ("import zerounlearn as zu; zu.run_audit", "an audit needs statsmodels: pip install 'zerounlearn[audit]'"),
        ("import zerounlearn as zu; zu.attacks", ""),
    ],
)
def test_it(statement: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT + statement], capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr
    assert ("FrameworkError" in done.stderr) == (done.returncode != 0) == ("pip install" in said)
