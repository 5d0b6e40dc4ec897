"""README's Python as a user has it: from a built wheel, without the checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of a wheel; what it needs is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run("-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    if built.returncode:  # its build backend comes from the network
        pytest.skip(f"no wheel can be built here: {built.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("updp-*.whl")
    done = run("-m", "pip", "install", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_readme_runs_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    where = f"import updp\nassert updp.__file__.startswith({str(installed)!r})\n"
    done = run("-c", where + code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "on 500 test samples" in done.stdout
    for arguments in (["zoo"], ["doctor", "runs/digits"], ["report", "runs/digits"]):
        said = run("-m", "updp", *arguments, cwd=tmp_path, PYTHONPATH=str(installed))
        assert said.returncode == 0, (arguments, said.stderr)
    assert (tmp_path / "runs/digits/report.html").exists()
