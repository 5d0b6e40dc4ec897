// What a real browser makes of the pages given: JSON on standard output, judged by test_browser.py.
"use strict";
const { chromium } = require("playwright-core");
const { pathToFileURL } = require("node:url");

const [executablePath, ...files] = process.argv.slice(2);

async function open(browser, file, options) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  await context.setOffline(true);
  const page = await context.newPage();
  const seen = { console: [], errors: [], dialogs: [], requests: [] };
  page.on("console", (message) => seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("dialog", (dialog) => (seen.dialogs.push(dialog.message()), dialog.dismiss()));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.goto(pathToFileURL(file).href);
  return [page, seen];
}

const tip = (page) =>
  page.evaluate(() => {
    const element = document.getElementById("tip");
    const at = element.getBoundingClientRect();
    const inside =
      at.left >= 0 && at.top >= 0 && at.right <= innerWidth && at.bottom <= innerHeight;
    return element.hidden ? null : { text: element.innerText, inside };
  });
const overflow = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
const colours = (page) =>
  page.evaluate(() => [
    getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.body).color,
    getComputedStyle(document.querySelector(".axes text")).fill,
    getComputedStyle(document.querySelector("figure .pt")).fill,
  ]);

async function plots(page) {
  const found = {};
  for (const figure of await page.$$("figure.plot")) {
    const id = await figure.getAttribute("id");
    const axes = await figure.$("svg.axes");
    await axes.scrollIntoViewIfNeeded();
    const box = await axes.boundingBox();
    const marks = await axes.$$(".pt");
    const outside = await axes.evaluate((svg) => {
      const at = svg.getBoundingClientRect();
      return [...svg.querySelectorAll(".pt, text")].filter((mark) => {
        const own = mark.getBoundingClientRect();
        return own.left < at.left - 2 || own.right > at.right + 2 || own.bottom > at.bottom + 2;
      }).length;
    });
    await marks[0].hover({ force: true });
    found[id] = { width: box.width, height: box.height, marks: marks.length, outside, tip: await tip(page) };
    await page.mouse.move(1, 1);
  }
  return found;
}

async function look(browser, file) {
  const result = {};
  let [page, seen] = await open(browser, file, { colorScheme: "light" });
  result.seen = seen;
  result.light = await colours(page);
  result.plots = await plots(page);
  const target = page.locator(".box, .cell");
  await target.nth(1).hover();
  result.hover = await tip(page);
  await page.mouse.move(1, 1);
  result.gone = await tip(page);
  await target.first().focus();
  const first = await tip(page);
  // Twice: in a comparison the second is the same site of the other run.
  for (const key of ["ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
  result.keys = [first, await tip(page)];
  await page.keyboard.press("Escape");
  result.escaped = await tip(page);
  result.details = await page.evaluate(() => {
    const count = () => document.querySelectorAll("details:not([open])").length;
    const closed = [count()];
    for (const name of ["beforeprint", "afterprint"]) {
      dispatchEvent(new Event(name));
      closed.push(count());
    }
    return closed;
  });
  const pdf = await page.pdf({ format: "A4" });
  result.pdf = [pdf.subarray(0, 5).toString(), pdf.length];
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  result.print = await colours(page);
  await page.context().close();

  [page] = await open(browser, file, { colorScheme: "dark" });
  result.dark = await colours(page);
  await page.context().close();

  // Boxes follow each other as text does: to the right, or on to the next row.
  const disordered = (page) =>
    page.evaluate(() => {
      const at = [...document.querySelectorAll(".box")].map((box) => box.getBoundingClientRect());
      return at.slice(1).filter((b, i) => b.top < at[i].bottom && (b.top !== at[i].top || b.left < at[i].right))
        .length;
    });
  result.disordered = {};
  result.overflow = {};
  for (const width of [320, 390, 1280]) {
    [page] = await open(browser, file, { viewport: { width, height: 844 }, hasTouch: width < 1000 });
    result.overflow[width] = await overflow(page);
    result.disordered[width] = await disordered(page);
    if (width === 390) {
      await page.locator(".box, .cell").nth(1).tap();
      result.tap = await tip(page);
    }
    await page.context().close();
  }

  [page] = await open(browser, file, { javaScriptEnabled: false });
  result.withoutScript = await page.locator(".pt > title").count();
  await page.context().close();
  return result;
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const results = [];
  for (const file of files) results.push(await look(browser, file));
  await browser.close();
  console.log(JSON.stringify(results));
})();
