"""Reports in a real browser: headless Chromium, where the system has it with its driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from small_audits import audit

from joulecache.pipelines.report.files import write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
EVIL = ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "&lt;b&gt; 'quoted\" ; drop")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["drawn photos", "hostile names"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, bytes]) -> Path:
    """The page of a real audit."""
    folder = tmp_path_factory.mktemp("audit")
    chain = "decode|resize(24) || random_crop(20)|flip_lr"
    if request.param == "drawn photos":
        result = audit("synthetic:40", chain, folder / "out", pairs=5)
    else:
        for number, data in enumerate(photos.values()):
            name = EVIL[number % len(EVIL)].replace("/", "\u2215")
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            (folder / "photos" / name / f"{name} {number}.jpg").write_bytes(data)
        images, splits = folder / "photos", {"train": "."}  # otherwise "img src" may have masks
        result = audit(images, chain, folder / "out", workloads=["input", "train"], splits=splits, pairs=5)
    return write_report(result, folder / "report").html


def opened(browser: Any, page: Path, width: int, scheme: str) -> Any:
    """Open a page on a screen of that width, in a light or dark scheme."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was before
    browser.get(page.as_uri())
    return browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_quiet_alone_and_as_wide_as_the_screen(browser: Any, page: Path, width: int, scheme: str) -> None:
    driver = opened(browser, page, width, scheme)
    assert driver.get_log("browser") == []  # an alert would have made this fail
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return document.querySelectorAll('svg').length") > 0
    assert driver.execute_script("return document.querySelectorAll('svg:not([role=img])').length") == 0
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(", ")[:3])) / 3
    assert (lightness < 128) == (scheme == "dark")


def test_names_of_others_are_text(browser: Any, page: Path) -> None:
    driver = opened(browser, page, 1280, "light")
    assert driver.execute_script("return document.querySelectorAll('script, img[src=x]').length") == 0
    if "hostile" in page.parts[-3] or "onerror" in page.read_text("utf-8"):
        assert EVIL[0] in driver.execute_script("return document.body.innerText")
