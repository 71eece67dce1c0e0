"""The page at `/` in headless Chromium."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from served import serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser_only = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,800",
                 *(("--no-sandbox",) if os.getuid() == 0 else ())):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, address: str) -> Iterator[webdriver.Chrome]:
    chromium.get(address)
    chromium.execute_script("localStorage.clear()")
    chromium.get(address)
    yield chromium
    log = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in log if "favicon.ico" not in message] == []


def until(driver: webdriver.Chrome, css: str, count: int = 1) -> list[str]:
    """The texts of `count` elements, once they are there."""
    WebDriverWait(driver, 30).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, css)) >= count)
    return [e.text for e in driver.find_elements(By.CSS_SELECTOR, css)]


def put(driver: webdriver.Chrome, id: str, value: str) -> None:
    field = driver.find_element(By.ID, id)
    field.clear()
    field.send_keys(value)
    field.send_keys(Keys.TAB)


def ask(driver: webdriver.Chrome, text: str) -> None:
    driver.find_element(By.ID, "text").send_keys(text + Keys.ENTER)


def settings(driver: webdriver.Chrome) -> None:
    driver.find_element(By.ID, "open").click()


def test_files_and_headers(address: str) -> None:
    for path, kind in (("/", "text/html"), ("/page/chat.js", "text/javascript"), ("/page/chat.css", "text/css")):
        got = httpx.get(address + path)
        assert got.status_code == 200 and got.headers["content-type"].startswith(kind)
        assert got.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "://" not in got.text and "innerHTML" not in got.text and "unsafe" not in str(got.headers)
    assert httpx.get(address + "/page/../app.py").status_code == 404


@browser_only
def test_a_conversation(page: webdriver.Chrome) -> None:
    settings(page)
    put(page, "temperature", "0")
    ask(page, "What is 12 times 12?")
    until(page, ".assistant .copy")
    assert "144" in until(page, ".assistant .words")[0]
    numbers = until(page, ".numbers")[0]
    assert "tokens" in numbers and "tok/s" in numbers and "first after" in numbers
    assert page.find_element(By.ID, "model").text == "demo"
    ask(page, "Who are you?")
    until(page, ".assistant .copy", 2)
    assert len(until(page, ".turn", 4)) == 4
    page.find_element(By.ID, "fresh").click()
    assert page.find_elements(By.CSS_SELECTOR, ".turn") == []
    page.refresh()
    assert page.find_element(By.ID, "temperature").get_property("value") == "0", "settings are kept"


@browser_only
def test_reasoning_is_folded(page: webdriver.Chrome) -> None:
    settings(page)
    put(page, "temperature", "0")
    page.find_element(By.ID, "thinking").click()
    ask(page, "What is 12 times 12?")
    until(page, ".assistant .numbers")
    until(page, "details")
    WebDriverWait(page, 30).until(lambda d: d.find_element(By.ID, "send").is_displayed())
    assert not page.find_element(By.CSS_SELECTOR, ".thought").is_displayed()
    page.find_element(By.CSS_SELECTOR, "summary").click()
    assert page.find_element(By.CSS_SELECTOR, ".thought").text


@browser_only
@pytest.mark.parametrize("by_key", [False, True])
def test_stop(page: webdriver.Chrome, by_key: bool) -> None:
    # A fetch that never ends by itself: what is stopped is certain, however fast the model is.
    page.execute_script("""
        window.fetch = (url, options) => new Promise((_, fail) => options.signal.addEventListener(
            "abort", () => fail(new DOMException("", "AbortError"))));""")
    ask(page, "Tell me a story.")
    WebDriverWait(page, 10).until(lambda d: d.find_element(By.ID, "stop").is_displayed())
    if by_key:
        page.find_element(By.ID, "text").send_keys(Keys.ESCAPE)
    else:
        page.find_element(By.ID, "stop").click()
    WebDriverWait(page, 10).until(lambda d: d.find_element(By.ID, "send").is_displayed())
    assert "stopped" in page.find_element(By.CSS_SELECTOR, ".numbers").text


@browser_only
def test_text_is_no_html(page: webdriver.Chrome) -> None:
    evil = '<img src=x onerror="document.title=1"><b>bold</b>'
    page.execute_script("""
        const evil = arguments[0], piece = (delta) => `data: ${JSON.stringify({choices: [{delta}]})}\\n\\n`;
        window.fetch = async () => new Response(
            piece({reasoning_content: evil}) + piece({content: evil}) + "data: [DONE]\\n\\n");""", evil)
    ask(page, evil)
    until(page, ".assistant .copy")
    assert until(page, ".turn .words", 2) == [evil, evil]
    assert page.find_elements(By.CSS_SELECTOR, "main img, main b") == []


@browser_only
def test_a_key_is_asked_for(chromium: webdriver.Chrome, llm: LLM) -> None:
    with serving(Host(llm, "demo", ServeConfig(api_key=("secret",)))) as address:
        chromium.get(address)
        ask(chromium, "Who are you?")
        assert "API key" in until(chromium, ".error")[0]
        settings(chromium)
        put(chromium, "key", "secret")
        ask(chromium, "Who are you?")
        until(chromium, ".copy")
        chromium.get("about:blank")
    chromium.get_log("browser")
