"""The page in a real browser: upload, read, look, change, with a phone and with the keyboard alone."""

from __future__ import annotations

import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
DESKTOP, PHONE = (1280, 900), (375, 800)

pytestmark = pytest.mark.skipif(
    not (shutil.which(CHROMIUM) and shutil.which(CHROMEDRIVER)),
    reason=f"{CHROMIUM} and {CHROMEDRIVER} are needed",
)


class Page:
    """What a person does with the page."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, size, ready="#films input[type=file]"):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url)
        self.until(lambda: self.all(ready))

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, seconds=20):
        return WebDriverWait(self.driver, seconds).until(lambda _: condition())

    def text(self, selector):
        """What is written there; "" while it is being redrawn."""
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def upload(self, *paths):
        self.all("#films input[type=file]")[0].send_keys("\n".join(map(str, paths)))
        self.until(lambda: all(path.stem[:4] in self.text("#films") for path in paths))

    def read(self):
        self.all("#read")[0].click()

    def pictures(self):
        """The sources of the pictures, and that they were drawn."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#pictures .grid-container img')]"
            ".filter(image => image.naturalWidth > 0).map(image => image.src)"
        )

    def captions(self):
        return [caption.text for caption in self.all("#pictures .caption-label")]

    def overflow(self):
        return self.driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def press(self, key):
        ActionChains(self.driver).send_keys(key).perform()

    def tab_to(self, selector, most=30):
        for _ in range(most):
            self.press(Keys.TAB)
            if self.driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
                return
        pytest.fail(f"{most} tabs do not reach {selector}")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver):
    return Page(driver)


def test_upload_answer_pictures_and_another_method(page, url, films, predictor):
    page.open(url, DESKTOP)
    assert "Not a medical device" in page.text("#answer")
    page.upload(films["bacterial"])
    page.read()
    page.until(lambda: len(page.pictures()) == 4)
    expected = predictor.predict_file(films["bacterial"].read_bytes(), "gradcam")
    answer = page.text("#answer")
    for share in expected.probabilities:
        assert f"{100 * share:.1f} %" in answer
    assert "phantom_bacterial.png" in answer and "never for diagnosis" in answer
    assert page.all("#answer [role=status] h2")
    captions = page.captions()
    assert captions[0] == "original"
    assert [caption.split()[0] for caption in captions[1:]] == ["normal", "bacterial", "viral"]

    before = page.pictures()
    page.all("#method input[value=layercam]")[0].click()
    page.until(lambda: len(page.pictures()) == 4 and page.pictures() != before)
    assert page.pictures()[0] == before[0]
    assert page.text("#answer") == answer


def test_several_films_one_of_them_damaged(page, url, films, damaged):
    page.open(url, DESKTOP)
    page.upload(damaged, films["normal"])
    page.read()
    page.until(lambda: len(page.pictures()) == 4)
    assert "phantom_normal.png" in page.text("#answer")
    rows = [row.text for row in page.all("#table tbody tr")]
    assert len(rows) == 2 and "damaged or cut short" in rows[0] and "2. phantom_normal.png" in rows[1]

    page.all("#chosen input")[0].click()
    page.until(lambda: page.all("#chosen [role=option]"))[0].click()
    page.until(lambda: "This film was refused" in page.text("#answer"))
    assert "The image is damaged or cut short" in page.text("#answer")
    assert page.pictures() == []


def test_reading_nothing_says_what_to_do(page, url):
    page.open(url, DESKTOP)
    page.read()
    page.until(lambda: "No film is chosen: upload one" in page.text("body"))


def test_phone_never_scrolls_sideways(page, url, films, damaged):
    page.open(url, PHONE)
    assert page.overflow() <= 0
    page.upload(films["viral"], damaged)
    page.read()
    page.until(lambda: len(page.pictures()) == 4)
    assert page.overflow() <= 0
    upload, answer = (page.all(selector)[0].rect for selector in ("#films", "#answer"))
    assert upload["y"] + upload["height"] <= answer["y"] and upload["x"] == answer["x"]


def test_keyboard_alone_reads_an_example_and_changes_the_maps(page, url):
    page.open(url, DESKTOP)
    page.tab_to("#films button")
    page.tab_to("#read")
    page.tab_to("#examples button")
    page.press(Keys.ENTER)
    page.until(lambda: len(page.pictures()) == 4)
    assert "phantom_normal.png" in page.text("#answer")
    before = page.pictures()
    page.tab_to("#method input[value='layercam']")
    page.press(Keys.SPACE)
    page.until(lambda: len(page.pictures()) == 4 and page.pictures() != before)
    before = page.pictures()
    page.tab_to("#opacity input[type=range]")
    page.press(Keys.END)
    page.until(lambda: len(page.pictures()) == 4 and page.pictures() != before)


def test_page_without_a_model(page, url_without_model):
    page.open(url_without_model, PHONE, ready="#untrained")
    text = page.text("#untrained")
    assert "There is no model to serve" in text and "The log of the server says why." in text
    assert "python jobs/train.py --config configs/cnn.py --workdir runs/cnn" in text
    assert page.overflow() <= 0 and not page.all("#read")


def test_the_page_asks_no_other_server(page, url):
    page.driver.get_log("performance")  # of what was before
    page.open(url, DESKTOP)
    page.all("#examples button")[2].click()
    page.until(lambda: len(page.pictures()) == 4)
    time.sleep(0.5)  # for whatever is fetched last
    log = [entry["message"] for entry in page.driver.get_log("performance")]
    asked = {
        part.split('"')[0] for line in log if "Network.requestWillBeSent" in line for part in line.split('"url":"')[1:]
    }
    web = {address for address in asked if address.startswith("http")}
    assert any(address.startswith(url) for address in web)
    assert {address for address in web if not address.startswith(url)} == set()
