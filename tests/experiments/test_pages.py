"""The pages of results are those of their JSON files."""

import json

import pytest

from experiments.__main__ import main
from experiments.compare.table import rows_of
from experiments.pages import FOLDER, LIST, PAGES, pages
from experiments.result import TABLE_ONLY, Result
from experiments.tables import Table


@pytest.mark.parametrize("name", [*(f"{page}.md" for page in PAGES), LIST])
def test_every_page_is_that_of_its_data(name):
    made = pages(FOLDER)
    assert (FOLDER / name).read_text(encoding="utf-8") == made[name], "run `python -m experiments pages`"


def test_every_result_can_be_repeated():
    for file in FOLDER.glob("*.json"):
        result = Result.load(file)
        assert result.command.startswith("python -m experiments "), file
        assert len(result.commit) == 40, file
        assert result.machine, file
        assert result.rows or (result.tables and result.recorded == TABLE_ONLY), file
        seeds = {row["seed"] for row in result.rows if "seed" in row}  # a row that has none is of all, or of the only one
        assert seeds == set(result.seeds) or (not seeds and len(result.seeds) == 1), file


def test_a_changed_number_changes_the_page(tmp_path):
    stored = json.loads((FOLDER / "muon_gpt.json").read_text())
    stored["rows"][0]["test_1"] += 1
    (tmp_path / "muon_gpt.json").write_text(json.dumps(stored))
    changed = pages(tmp_path)["muon.md"]
    (tmp_path / "muon_gpt.json").write_text((FOLDER / "muon_gpt.json").read_text())
    assert pages(tmp_path)["muon.md"] != changed
    assert main(["pages", "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "muon.md").read_text() == pages(tmp_path)["muon.md"]


def test_a_page_shows_what_was_measured():
    result = Result.load(FOLDER / "default_gpt.json")
    by_hand = [row["test_1"] for row in result.rows if (row["optimizer"], row["lr"]) == ("auto", 0.003)]
    assert len(by_hand) == 5
    (row,) = [row for row in rows_of(result) if row.optimizer == "auto"]
    assert row.setting.lr == 0.003
    assert row.points[1.0][0] == pytest.approx(sum(by_hand) / 5)
    assert f"{sum(by_hand) / 5:.4f} ± " in (FOLDER / "default.md").read_text()


def test_a_result_is_the_same_after_json(tmp_path):
    table = Table(["a", "b"], [["1", "[2, 3]"], ["x], [", ""]], "Title", "Text.", ["Note."])
    result = Result("step", "Steps", "python -m experiments step", seeds=[0, 1], rows=[{"seed": 0, "x": 1.5}], tables=[table], page="speed")
    (tmp_path / "x.json").write_text(result.json())
    again = Result.load(tmp_path / "x.json")
    assert again.markdown() == result.markdown()
    assert (again.rows, again.seeds, again.page) == ([{"seed": 0, "x": 1.5}], [0, 1], "speed")


def test_a_page_that_there_is_not_is_named(tmp_path):
    (tmp_path / "x.json").write_text(Result("step", "Steps", "python", page="spead").json())
    with pytest.raises(ValueError, match=r"x.json belongs to the page 'spead', but there are default, muon"):
        pages(tmp_path)


def test_a_folder_without_results_is_an_error_and_is_not_made(tmp_path, capsys):
    assert main(["pages", "--folder", str(tmp_path / "absent")]) == 1
    assert "there is no JSON file of a result" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()
