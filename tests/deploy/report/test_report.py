"""The page of one run: what it says, on a run of the tiny model."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.deploy.report.reading import Page, change, with_many_sites
from updp import UserError, report
from updp.deploy.report.parts import list_marks
from updp.deploy.report.plot import Mark, Plot, Series, linear
from updp.deploy.report.words import digits, sampling_error
from updp.tasks import CLASSIFICATION

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def page(run: Path) -> Page:
    return Page(report(run).read_text())


def test_the_headline_comes_first_and_agrees_with_result_json(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    path = report(run)
    assert path == run / "report.html"
    found = Page(path.read_text())
    text = found.text[found.text.index("updp · run") :]
    top = text[: text.index("The network, site by site")]
    assert f"{result['merged']['metric']:.2f} %" in top
    assert f"baseline {result['baseline']['metric']:.2f} %" in top
    noise = sampling_error(CLASSIFICATION.metric, result["merged"]["metric"], result["test_images"])
    assert f"± {digits(noise, 2)}: sampling error, {result['test_images']} test images" in top
    assert f"{result['speedup']['median']:.2f}x" in top
    assert f"Parameters {result['merged']['parameters']:,} baseline" in top
    assert f"{len(json.loads((run / 'plan.json').read_text())['choices'])} of 4 sites" in top


def test_all_sections_and_plots_are_there(run: Path) -> None:
    ids = page(run).ids()
    assert {"network", "accuracy", "search", "proof", "training", "reproduce"} <= ids
    plots = {"stages", "front", "latency", "fit", "loss-subnet", "lambda-subnet"}
    assert {f"plot-{name}" for name in plots} <= ids


def test_every_site_is_drawn_with_what_it_became(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())["choices"]
    boxes = {a["data-site"]: a for _, a in page(run).elements if "data-site" in a}
    assert list(boxes) == [f"blocks.{i}" for i in range(4)]
    for site, box in boxes.items():
        assert ("pruned" in box["class"].split()) == (site in plan)
        label = plan.get(site, "")
        word = "branch dropped" if label == "drop" else "one operator"
        became = f"{word}: {label}" if label else "kept"
        assert f"became: {became}\n" in box["title"]
        assert "block: Block\ntensor: 6×4×4" in box["title"]
        assert ("merge error, float64" in box["title"]) == (site in plan)


@pytest.mark.parametrize(
    ("kind", "word"), [("attention", "fewer channels"), ("mine", "another candidate")]
)
def test_a_site_looks_like_the_kind_that_it_became(run: Path, kind: str, word: str) -> None:
    site, label = next(iter(json.loads((run / "plan.json").read_text())["choices"].items()))
    change(run / "plan.json", lambda plan: plan["candidates"].update({site: {"kind": kind}}))
    boxes = {a["data-site"]: a for _, a in page(run).elements if "data-site" in a}
    assert f"became: {word}: {label}\n" in boxes[site]["title"]


def test_many_sites_stay_in_the_order_of_the_model(run: Path) -> None:
    names = with_many_sites(run, 60)
    found = page(run)
    assert found.attribute("data-site") == names
    rows = [text for text in found.texts if text in names]
    assert rows[:60] == names  # of the table


def test_what_a_plot_shows_is_a_table_too(run: Path) -> None:
    found = page(run)
    shown = {name for name in found.ids() if name.startswith("plot-")} - {"plot-stages", "plot-fit"}
    assert found.text.count("The same as a table") == len(shown - {"plot-merge"})
    front = found.text[found.text.index("Pareto front of the search") :]
    assert re.search(r"taken: \d+ pruned", front)
    curves = Plot("c", "Curve", linear("", []), linear("", []), (make_series(1000, line=True),))
    listed = list_marks(curves)
    assert listed is not None
    assert 30 < len(listed.rows) <= 60
    assert listed.rows[-1] == ("loss: step 999", "999")
    cloud = Plot("c", "Cloud", linear("", []), linear("", []), (make_series(1000, line=False),))
    assert list_marks(cloud) is None


def make_series(count: int, line: bool) -> Series:
    marks = tuple(Mark(i, i, f"step {i}\nvalue: {i}") for i in range(count))
    return Series("loss", "c-one", marks, line=line)


def test_every_point_can_be_read_without_a_mouse(run: Path) -> None:
    found = page(run)
    points = [a for t, a in found.elements if t == "g" and "pt" in a.get("class", "").split()]
    assert len(points) > 20
    assert all(point["tabindex"] == "-1" for point in points)
    titles = [i for i, (tag, _) in enumerate(found.elements) if tag == "title"]
    assert len(titles) == len(points) + 1


def test_nothing_is_loaded_and_the_policy_says_so(run: Path) -> None:
    html = report(run).read_text()
    found = Page(html)
    assert not re.search(r"https?:|//[a-z]+\.[a-z]", html)
    assert not found.tags() & {"link", "img", "iframe", "object", "embed", "base"}
    assert not found.attribute("src")
    assert all(value.startswith("#") for value in found.attribute("href"))
    policy = found.attribute("content")[0]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    # What the policy's hashes do not let run.
    assert not found.attribute("style")
    assert not any(name.startswith("on") for _, a in found.elements for name in a)


def test_markup_in_what_the_user_wrote_is_text(run: Path) -> None:
    def everywhere(about: dict) -> None:
        about["classes"][3] = EVIL
        about["command"] = ["updp", "prune", "--model", EVIL, "--data", "a b"]
        about["model"] = about["data"] = about["weights"] = EVIL
        about["versions"][EVIL] = EVIL

    change(run / "run.json", everywhere)
    for file in ("plan.json", "sites/sites.json", "subnet/fit.json", "merge/checks.json"):
        text = (run / file).read_text()
        text = text.replace('"blocks.1"', json.dumps(EVIL)).replace('"Block"', json.dumps(EVIL))
        (run / file).write_text(text)
    change(run / "result.json", lambda r: r["by_stage"].update({EVIL: 12.0}))
    html = report(run).read_text()
    found = Page(html)
    assert "<img" not in html
    assert html.count("<script>") == html.count("</script>") == 1
    assert EVIL in found.text  # a class name, as it was written
    assert EVIL in found.attribute("data-site")
    assert "alert(2)" not in "".join(name for _, a in found.elements for name in a)


def test_markup_in_the_path_of_the_run_is_text(finished: Path, tmp_path: Path) -> None:
    run = tiny.unsealed(shutil.copytree(finished, tmp_path / "<b onclick=x>&"))
    html = report(run).read_text()
    assert "<b onclick" not in html
    assert "updp · <b onclick=x>&" in Page(html).text


@pytest.mark.parametrize(
    ("speedup", "says"),
    [
        ((1.02, 0.98, 1.05), "No faster beyond the noise, at"),
        ((1.02, 1.00, 1.05), "No faster beyond the noise, at"),
        ((0.90, 0.85, 0.95), "Slower: 0.90x the baseline's speed, at"),
        ((1.50, 1.40, 1.60), "1.50x faster, at"),
    ],
)
def test_the_headline_claims_nothing_inside_the_noise(
    run: Path, speedup: tuple[float, float, float], says: str
) -> None:
    def set_speed(result: dict) -> None:
        result["speedup"] = dict(zip(("median", "low", "high"), speedup, strict=True))

    change(run / "result.json", set_speed)
    text = page(run).text
    assert says in text
    assert ("x faster" in text) == (speedup[1] > 1)


@pytest.mark.parametrize(
    ("merged", "says"),
    [
        (92.16, "at 92.16 % top-1 (−1.10 points)"),
        (93.26, "at 93.26 % top-1 (as the baseline)"),
        (94.26, "at 94.26 % top-1 (+1.00 points)"),
    ],
)
def test_the_first_line_says_what_it_cost(run: Path, merged: float, says: str) -> None:
    def set_top1(result: dict) -> None:
        result["baseline"]["metric"], result["merged"]["metric"] = 93.26, merged

    change(run / "result.json", set_top1)
    assert says in page(run).text


def test_the_command_of_a_run_by_module_can_be_pasted(run: Path) -> None:
    command = ["/some/where/updp/__main__.py", "prune", "--model", "m", "--out", "runs/a b"]
    change(run / "run.json", lambda about: about.update(command=command))
    assert "python -m updp prune --model m --out 'runs/a b'" in page(run).text


def test_a_change_of_top1_inside_the_sampling_error_is_called_so(run: Path) -> None:
    def set_top1(result: dict) -> None:
        result["test_images"] = 846
        result["baseline"]["metric"], result["merged"]["metric"] = 93.26, 91.96

    change(run / "result.json", set_top1)
    assert "baseline 93.26 %: −1.30 points, within the sampling error" in page(run).text
    change(run / "result.json", lambda r: r["merged"].update(metric=80.0))
    text = page(run).text
    assert "−13.26 points" in text
    assert "points, within the sampling error" not in text


def test_the_stage_that_lost_most_is_marked(run: Path) -> None:
    stages = {"baseline": 90.0, "after search": 70.0, "after fit": 88.0, "merged": 87.0}
    change(run / "result.json", lambda r: r.update(by_stage=stages))
    text = page(run).text
    assert text.count("−20.00 lost most") == 1
    assert text.count("lost most") == 2  # the table and the plot's legend
    assert "−1.00 lost most" not in text


def test_a_run_of_a_given_plan_without_fit_and_training(run: Path) -> None:
    for file in ("search/front.json", "subnet/fit.json", "merge/checks.json"):
        (run / file).unlink()
    (run / "subnet/figures.jsonl").write_text("")
    (run / "supernet/figures.jsonl").unlink()
    found = page(run)
    assert "The plan was given, not searched for" in found.text
    assert "Nothing was fitted" in found.text
    plots = {name for name in found.ids() if name.startswith("plot-")}
    assert plots == {"plot-stages", "plot-latency"}


def test_without_a_survey_the_plan_is_still_drawn(run: Path) -> None:
    shutil.rmtree(run / "sites")
    found = page(run)
    assert len(found.attribute("data-site")) == 2
    assert "2 sites pruned" in found.text


def test_merge_errors_are_drawn_where_there_are_any(run: Path) -> None:
    def set_errors(float32: float) -> None:
        def errors(checks: dict) -> None:
            for check in checks["rows"]:
                check["error"] = float32 if check["dtype"] == "float32" else 0.0

        change(run / "merge/checks.json", errors)

    set_errors(3.8e-7)
    found = page(run)
    assert "plot-merge" in found.ids()
    assert "float32: 3.8e-07" in found.text
    set_errors(0.0)
    found = page(run)
    assert "plot-merge" not in found.ids()
    assert "All are exactly 0" in found.text


def test_a_password_is_not_in_the_report(run: Path) -> None:
    url = "postgresql+psycopg://ann:s3cret/word@db.example/search?password=s3cret"
    more = ["--data", url, f"--set=search.storage={url}"]
    change(run / "run.json", lambda about: about["command"].extend(more))
    for path in (report(run), report(run, format="markdown")):
        text = path.read_text()
        assert "s3cret" not in text
        assert "ann:" in text


def test_the_command_can_be_given_to_a_shell(run: Path) -> None:
    words = ["updp", "prune", "--model=m", "--data", "my 'own' $x"]
    change(run / "run.json", lambda about: about.update(command=words))
    assert """updp prune --model=m --data 'my '"'"'own'"'"' $x'""" in page(run).text


def test_numbers_that_are_none_are_left_out_of_a_curve(run: Path) -> None:
    rows = [{"step": i, "lr": 0.1, "loss": v, "lambda": i / 2} for i, v in enumerate((1.0, 2.0))]
    lines = [json.dumps(row) for row in (*rows, {"step": 2, "loss": float("nan"), "lambda": 1.0})]
    (run / "subnet/figures.jsonl").write_text("\n".join([*lines, '{"step": 3, "lo']))
    html = report(run).read_text()
    assert ">nan" not in html
    assert "step 1\nloss: 2.00\nlr: 0.100\nlambda: 0.500" in html


def test_an_unfinished_run_is_one_clear_line(run: Path, tmp_path: Path) -> None:
    (run / "result.json").unlink()
    with pytest.raises(UserError, match=r"no finished run: there is no result\.json; `updp prune`"):
        report(run)
    with pytest.raises(UserError, match=r"'.*nowhere' is no run directory"):
        report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("result.json", '{"format": 1}', "is not what updp writes: baseline: Field required"),
        ("result.json", "{", "cannot be read: JSONDecodeError"),
        ("sites/sites.json", '{"format": 1, "sites": 1}', "is not what updp writes: sites"),
        ("subnet/figures.jsonl", "[]\n{}\n", "line 1: it is no row of names"),
        ("subnet/figures.jsonl", "{}\n", "line 1: there is no step"),
        ("subnet/figures.jsonl", "nonsense\n{}\n", "line 1: JSONDecodeError"),
        ("subnet/fit.json", "{}", "is not what updp writes: its format is None"),
        ("export/int8.json", '{"format": 1}', "is not what updp writes: baseline"),
        ("plan.json", "\xff", "cannot be read: UnicodeDecodeError"),
    ],
)
def test_a_wrong_file_is_named(run: Path, file: str, text: str, says: str) -> None:
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        report(run)
    assert f"{run / file}" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_front_that_points_nowhere_is_refused(run: Path) -> None:
    change(run / "search/front.json", lambda front: front.update(chosen=10**6))
    with pytest.raises(UserError, match=r"front\.json' is not what updp writes"):
        report(run)


def test_a_report_is_the_same_every_time(run: Path) -> None:
    assert report(run).read_bytes() == report(run, out=run / "again.html").read_bytes()


@pytest.mark.parametrize("name", ["notes.md", "page.html"])
def test_a_file_that_is_no_report_is_not_replaced(name: str, run: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("mine")
    with pytest.raises(UserError, match=r"is there, and is no report of updp"):
        report(run, out=file)
    assert file.read_text() == "mine"
    file.unlink()
    for _ in range(2):
        assert report(run, out=file) == file


@pytest.mark.parametrize(
    "words", [["updp", "search", "--out", "x"], ["updp", "prune", "--out", "x", "--pick", "2"]]
)
def test_a_run_made_in_steps_is_made_again_by_its_plan(words: list[str], run: Path) -> None:
    change(run / "run.json", lambda about: about.update(command=words, data="digits"))
    text = report(run, format="markdown").read_text()
    spec = json.loads((run / "run.json").read_text())["model"]
    again = f"updp prune --model {spec} --data digits --recipe {run}/recipe.yaml --plan {run}/plan"
    assert again in text


def test_a_pick_is_made_again_by_its_plan(run: Path) -> None:
    words = ["updp", "prune", "--model", "m", "--data", "digits", "--budget", "blocks=2"]
    change(run / "run.json", lambda about: about.update(command=words))
    assert "--budget blocks=2" in report(run, format="markdown").read_text()
    pick = shutil.copytree(run, run / "picks" / "3")
    text = report(pick, format="markdown").read_text()
    assert f"--plan {pick}/plan.json" in text
    assert "--budget" not in text
