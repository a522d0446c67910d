"""A folder that one process at a time works in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.alone import LOCK, alone
from moesaic.errors import StudyError

HOLDS = """
import sys, time
from pathlib import Path
from moesaic.alone import alone
from moesaic.errors import StudyError
with alone(Path(sys.argv[1]), StudyError):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with alone(tmp_path, StudyError):
        told = r"one process must work in it at a time\. Got another\. Wait, or stop it"
        with pytest.raises(StudyError, match=told), alone(tmp_path, StudyError):
            pass
        assert (tmp_path / LOCK).exists()  # the refused one leaves it alone
    with alone(tmp_path, StudyError):
        pass
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StudyError), alone(tmp_path, StudyError):
            pass
        os.kill(other.pid, signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    with alone(tmp_path, StudyError):
        pass


def test_a_lock_that_its_holder_removes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another opened the file just before it was removed: who comes next would make, and hold, a new one."""
    monkeypatch.setattr("moesaic.alone.fcntl.flock", lambda *_: (tmp_path / LOCK).unlink())
    with pytest.raises(StudyError, match="Got another"), alone(tmp_path, StudyError):
        pass
