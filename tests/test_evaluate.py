"""Chapter 10: the scores. The scorer itself is tested in test_shapes.py."""

import json
import subprocess
import sys

from conftest import ROOT


def test_the_toy_world_is_scored_row_by_row(tmp_path):
    command = [sys.executable, str(ROOT / "evaluate.py"), "shapes", "--limit", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "shapes.json").read_text())["rows"]}
    tasks = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    assert all(rows[task]["count"] == 2 for task in tasks) and (tmp_path / "samples.png").exists()
    assert abs(rows["overall"]["value"] - sum(rows[task]["value"] for task in tasks) / 6) < 1e-9
    assert rows["questions"]["count"] == 20 and {"colors (held out)", "outline error"} <= set(rows)
    for row in rows.values():
        if row["name"] in tasks:
            assert abs(row["error"] - (row["value"] * (1 - row["value"]) / row["count"]) ** 0.5) < 1e-9
        assert f"| {row['name']} |" in done.stdout
