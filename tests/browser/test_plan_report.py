"""The planner's report in a real browser: it needs nothing but itself, follows light and dark, fits a phone."""

import pytest
from typer.testing import CliRunner

from mortice.cli import app


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    options = ["--model", "step-3", "--hardware", "h200,h20", "--out", str(out)]
    assert CliRunner().invoke(app, ["plan", "report", *options], catch_exceptions=False).exit_code == 0
    return out.as_uri()


def background(driver) -> str:
    return driver.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("dark", [False, True])
def test_it_follows_the_readers_colours_and_the_button_turns_them(page, open_browser, dark: bool) -> None:
    with open_browser(dark=dark) as driver:
        driver.get(page)
        light, night = "rgb(251, 251, 249)", "rgb(20, 23, 27)"
        assert background(driver) == (night if dark else light)
        driver.execute_script("document.getElementById('theme').click()")
        assert background(driver) == (light if dark else night)
        ink = driver.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
        assert ink in ("rgb(32, 36, 42)", "rgb(230, 232, 235)", "rgb(104, 112, 123)", "rgb(152, 161, 173)")


def test_every_question_is_there_without_errors_or_requests(page, open_browser) -> None:
    with open_browser() as driver:
        driver.get(page)
        sections = driver.execute_script(
            "return [...document.querySelectorAll('main section')].map(s => s.id)"
        )
        assert sections[0] == "short"
        assert {"roofline", "cost", "kv", "density", "afd", "ep", "compare", "supernode", "design"} <= set(
            sections
        )
        fetched = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert fetched == []
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
        doubled = driver.execute_script(
            "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
            "return ids.filter((id, i) => ids.indexOf(id) !== i)"
        )
        assert doubled == []


def test_a_phone_scrolls_down_only(page, open_browser) -> None:
    with open_browser(400, 800) as driver:
        driver.get(page)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 400
