"""/docs as a person uses it, on a wide screen and on a phone: it renders, its examples do what they say, and no request
leaves the machine.

    docs.py BASE_URL [FOLDER]   FOLDER gets a screenshot of each width
    docs.py BASE_URL '' TOKEN   for a service that lets nobody in without a key: authorizes with this one
"""

import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from playwright.sync_api import expect, sync_playwright

BASE = sys.argv[1]
SCREENSHOTS = Path(sys.argv[2]) if sys.argv[2:] and sys.argv[2] else None
TOKEN = sys.argv[3] if sys.argv[3:] else None
WIDTHS = {"wide": 1280, "phone": 390}
OPERATIONS = ["create_user", "list_users", "get_user", "update_user", "patch_user", "delete_user", "ready", "live", "metrics"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

requests, complaints = [], []


@contextmanager
def promise(text):
    try:
        yield
    except BaseException:
        print(f"not ok - {text}", flush=True)
        raise
    print(f"ok - {text}", flush=True)


def open_page(browser, width):
    page = browser.new_page(viewport={"width": width, "height": 1600})
    page.set_default_timeout(20_000)
    page.on("request", lambda request: requests.append(request.url))
    # The conflict is on purpose.
    is_complaint = lambda message: message.type == "error" and "status of 412" not in message.text
    page.on("console", lambda message: is_complaint(message) and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


def go(page, path):
    page.goto(urljoin(BASE, path))


def operation(page, name):
    return page.locator(f'[id$="-{name}"]').first


def execute(page, name, path_id=None, headers=()):
    """Opens the operation and executes it as it is prefilled; returns the status and the text of the answer."""
    block = operation(page, name)
    block.locator(".opblock-summary-control").click()
    if path_id is not None:
        block.locator('tr[data-param-name="id"] input').fill(str(path_id))
    for header, value in headers:
        block.locator(f'tr[data-param-name="{header}"] input').fill(value)
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table .response").first
    answer.wait_for()
    return answer.locator(".response-col_status").inner_text().split()[0], answer.inner_text()


def fits(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{page.url} is wider than {width}"


def look(browser, name, width):
    page = open_page(browser, width)
    with promise(f"/ leads to /docs/, which renders the API, its own title and nobody else's banner ({name})"):
        go(page, "/")
        assert urlsplit(page.url).path == "/docs/"
        expect(page).to_have_title("User Management API")
        page.get_by_role("heading", name=re.compile("User Management API")).wait_for()
        for known in OPERATIONS:
            operation(page, known).wait_for()
        assert page.locator(".topbar").count() == 0 and page.get_by_text("Explore").count() == 0
        fits(page, width)
    with promise(f"executing POST, PUT and PATCH as they are prefilled changes a user, and a stale tag is a conflict ({name})"):
        status, text = execute(page, "create_user")
        assert status == "201" and "x-trace-id" in text and "Иванов" in text, text
        created = int(re.search(r'"id": (\d+)', text).group(1))
        status, text = execute(page, "update_user", created)
        assert status == "200" and "Петров" in text, text
        status, text = execute(page, "patch_user", created, [("If-Match", '"2"')])
        assert status == "200" and 'etag: "3"' in text, text
        status, text = execute(page, "delete_user", created, [("If-Match", '"2"')])
        assert status == "412" and "precondition_failed" in text and 'etag: "3"' in text, text
        assert "password" not in operation(page, "update_user").locator("textarea").input_value()
        fits(page, width)
    with promise(f"each error of PUT shows an example of its own ({name})"):
        block = operation(page, "update_user")
        for code in ["invalid_query", "user_not_found", "precondition_failed", "payload_too_large", "validation_failed", "internal_error"]:
            block.locator(".responses-table:not(.live-responses-table)", has_text=f"/docs/errors/{code}").first.wait_for()
    if SCREENSHOTS:
        page.screenshot(path=SCREENSHOTS / f"docs-{name}.png")
    for path in ["/docs/errors", "/docs/errors/validation_failed", "/docs/license"]:
        with promise(f"{path} fits ({name})"):
            go(page, path)
            fits(page, width)
    with promise(f"the licence's link leads there ({name})"):
        go(page, "/docs/")
        with page.expect_popup() as licence:
            page.get_by_role("link", name=re.compile("MIT")).click()
        licence.value.get_by_text("Permission is hereby granted").wait_for()


def authorize(browser):
    page = open_page(browser, WIDTHS["wide"])
    with promise("without a key an operation is answered 401, and after Authorize it is carried out"):
        go(page, "/docs/")
        status, text = execute(page, "list_users")
        assert status == "401" and "unauthenticated" in text, text
        page.locator(".auth-wrapper .authorize").first.click()
        page.get_by_label("auth-bearer-value").fill(TOKEN)
        page.locator(".modal-btn.authorize").click()
        page.locator(".modal-btn.btn-done").click()
        block = operation(page, "list_users")
        block.get_by_role("button", name="Execute").click()
        block.locator(".live-responses-table .response-col_status", has_text="200").first.wait_for()
    if SCREENSHOTS:
        page.screenshot(path=SCREENSHOTS / "docs-authorized.png")


with sync_playwright() as playwright:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
    if TOKEN:
        authorize(browser)
        # The console tells of the 401, which was meant.
        complaints.clear()
    for name, width in WIDTHS.items() if not TOKEN else []:
        look(browser, name, width)
    with promise("the page of an error explains it"):
        page = open_page(browser, WIDTHS["wide"])
        go(page, "/docs/errors/validation_failed")
        page.get_by_text("JSON pointer").wait_for()
    with promise(f"none of {len(requests)} requests left the machine, and the console is silent"):
        origin = urlsplit(BASE).netloc
        strangers = [url for url in requests if not url.startswith("data:") and urlsplit(url).netloc != origin]
        assert strangers == [] and complaints == [], (strangers, complaints)
    browser.close()
