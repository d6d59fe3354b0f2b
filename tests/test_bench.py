"""Chapter 10: the benchmark runs, and its wastes change no result. Nothing here is timed."""

import json
import subprocess
import sys

from conftest import ROOT


def test_every_waste_has_a_row_and_the_same_result():
    command = [sys.executable, str(ROOT / "tests/bench.py"), "--size", "tiny", "--turns", "1", "--json", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for name in ("guided step", "two answers", "training step"):
        wastes = [row for row in rows if row.startswith(f"{name}: ")]
        assert len(wastes) >= 3
        for waste in (name, *wastes):
            assert rows[waste]["ratio"] > 0 and rows[waste]["max_difference"] < 1e-3, waste
    assert {"2 steps over 1", "8 pictures over 1", "guided step, pixel decoder", "training step, head"} < set(rows)
