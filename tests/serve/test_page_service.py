"""The page in a real browser on the service itself: routes, guard, engine and index, no canned answer."""

import shutil
from pathlib import Path

import pytest

from aqe.config.serve import SearchConfig
from serve.guard import Guard
from serve.keys import Keys
from serve.routes import make_api
from serve.search import Searcher
from tests.serve.test_search import config as config  # the fixture
from tests.tools.serve import KEY, aligned, listening, service

pytest.importorskip("playwright.sync_api", reason="needs playwright: make setup")
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


def test_from_a_known_example_to_its_marked_passage(config: SearchConfig, tmp_path: Path) -> None:
    made = service(aligned(tmp_path), search=config.model_dump())
    app = Guard(make_api(made, Searcher(config)), Keys([KEY]), made.config.limits)
    problems: list[str] = []
    with listening(app) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
        page.on(
            "console",
            lambda said: problems.append(said.text) if "401" not in said.text and said.type == "error" else None,
        )
        page.goto(url)
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="ring", exact=True).click()
        expect(page.get_by_role("heading", name="BM25 with the query alone")).to_be_visible()
        expect(page.get_by_role("heading", name="BM25 with the expansion")).to_be_visible()
        expect(page.get_by_text("gold passage")).to_contain_text("D2")
        page.goto(f"{url}/docs")
        expect(page.locator(".opblock")).to_have_count(8)
        browser.close()
    assert not problems
