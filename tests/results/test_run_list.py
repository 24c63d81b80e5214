"""The list of all runs: docs/runs.md is what `python -m results docs` writes, and holds what its sources say."""

import re
from pathlib import Path

from results.__main__ import main
from results.launch.plan import read_plan, table_names
from results.run_list import by_hand, read_miniature, section

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    main(["docs", "--out", str(tmp_path / "runs.md")])
    written = (tmp_path / "runs.md").read_text()
    assert written == (ROOT / "docs" / "runs.md").read_text(), "python -m results docs"
    # LwF's printed means; a paper that quotes them misprints 58.9, as its cells show.
    row = "| LwF | mtil-order1 | `bash zscl/scripts/lwf.sh 1` | 56.9 / 64.7 / 74.6 | 65.1 / 77.0 / 86.3 | 219 |"
    assert row in written
    assert "| ALTA, RN101 | til-cifar100-10x10 | `bash alta/scripts/cifar100_rn101.sh` | 84.77 |  |  |" in written
    assert "| `bash zscl/scripts/common.sh joint cub200 0` |" in written
    assert "published (ACC / AvgACC)" in written and "published (FAA / CAA)" in written
    scripts = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/scripts/**/*.sh")}
    assert {script for script in scripts if script not in written} == {"zscl/scripts/order.sh"}


def test_every_number_of_the_miniature_has_its_row() -> None:
    miniature = read_miniature()
    for table in table_names():
        section(read_plan(table), [], miniature)
    assert not miniature


def test_a_command_by_hand() -> None:
    command = "bash a.sh 5 --adaptive_pred --repeat 1 --seeds {seed} --log_dir out/{seed} --set dataroot=x seed={seed}"
    assert by_hand(command) == "bash a.sh 5 --adaptive_pred --set dataroot=x"


def test_the_readme_quotes_the_page() -> None:
    page, readme = ((ROOT / name).read_text() for name in ("docs/runs.md", "README.md"))
    quoted = [cell.strip() for line in readme.splitlines() if line.startswith("| ") for cell in line.split("|")[3:5]]
    numbers = [cell for cell in quoted if re.fullmatch(r"[\d./ ]+", cell)]
    assert len(numbers) > 15 and [number for number in numbers if number not in page] == []
