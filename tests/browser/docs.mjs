// Swagger UI as a person uses it: it renders, `Try it out` on POST /users creates a user, and no request leaves the machine.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const base = new URL(process.argv[2]);
const patience = { timeout: 20_000 };
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

const check = async (promise, body) => {
  try {
    await body();
  } catch (error) {
    console.log(`not ok - ${promise}`);
    throw error;
  }
  console.log(`ok - ${promise}`);
};

try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1600 } });
  const requests = [];
  const complaints = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));

  await check("/ leads to /docs/, which renders the API", async () => {
    await page.goto(new URL("/", base).href, patience);
    assert.equal(new URL(page.url()).pathname, "/docs/");
    await page.getByRole("heading", { name: /User Management API/ }).waitFor(patience);
    for (const operation of ["create_user", "list_users", "get_user", "update_user", "delete_user", "ready"]) {
      await page.locator(`[id$="-${operation}"]`).first().waitFor(patience);
    }
  });

  await check("/docs does too", async () => {
    await page.goto(new URL("/docs", base).href, patience);
    await page.locator('[id$="-create_user"]').waitFor(patience);
  });

  await check("Try it out on POST /users creates a user", async () => {
    const operation = page.locator('[id$="-create_user"]');
    await operation.locator(".opblock-summary-control").click(patience);
    const body = operation.locator("textarea.body-param__text");
    if (!(await body.isVisible())) {
      await operation.getByRole("button", { name: "Try it out" }).click(patience);
    }
    await body.fill(JSON.stringify({ name: "Иван", surname: "Иванов", password: "secret123" }), patience);
    await operation.getByRole("button", { name: "Execute" }).click(patience);
    const response = operation.locator(".live-responses-table .response").first();
    await response.waitFor(patience);
    assert.equal((await response.locator(".response-col_status").innerText()).trim().split(/\s/)[0], "201");
    const text = await response.innerText();
    assert.match(text, /x-trace-id/);
    assert.match(text, /Иванов/);
  });

  if (process.env.SCREENSHOT) {
    await page.screenshot({ path: process.env.SCREENSHOT });
  }

  await check("the page of an error explains it", async () => {
    await page.goto(new URL("/docs/errors/validation_failed", base).href, patience);
    await page.getByText("JSON pointer").waitFor(patience);
  });

  await check(`none of ${requests.length} requests left the machine, and the console is silent`, async () => {
    const strangers = requests.filter((url) => !url.startsWith("data:") && new URL(url).origin !== base.origin);
    assert.deepEqual(strangers, []);
    assert.deepEqual(complaints, []);
  });
} finally {
  await browser.close();
}
