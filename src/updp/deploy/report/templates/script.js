"use strict";
// Text for hovering is in titles, which work without this script; here they become one box that
// also follows the keyboard and a finger. Nothing but text is ever put into the page.
const tip = document.getElementById("tip");
const hoverable = [];
let shown = null;
for (const title of document.querySelectorAll(".pt > title")) {
  hoverable.push([title.parentNode, title.textContent]);
  title.remove();
}
for (const element of document.querySelectorAll("[title]")) {
  hoverable.push([element, element.title]);
  element.removeAttribute("title");
}
for (const [element, text] of hoverable) {
  element.setAttribute("aria-label", text);
  if (!element.matches("li")) element.setAttribute("role", "img");
  element.addEventListener("pointerenter", () => show(element, text));
  element.addEventListener("pointerleave", hide);
  element.addEventListener("focus", () => show(element, text));
  element.addEventListener("blur", hide);
}

function show(element, text) {
  const [first, ...rest] = text.split("\n");
  tip.replaceChildren(line("b", first));
  for (const row of rest) tip.append(line("span", row));
  tip.hidden = false;
  shown = element;
  place(element);
}

function place(element) {
  const at = element.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const left = Math.min(Math.max(at.left + at.width / 2 - size.width / 2, 8), width - size.width - 8);
  const above = at.top - size.height - 8;
  tip.style.left = left + "px";
  tip.style.top = (above < 8 ? at.bottom + 8 : above) + "px";
}

function line(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function hide() {
  tip.hidden = true;
}

// Going to an element may scroll: the box stays with it.
addEventListener("scroll", () => tip.hidden || place(shown), { passive: true });
addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});

// One stop of the Tab key for each drawing; the arrow keys go along inside.
for (const box of document.querySelectorAll("[data-roving]")) {
  const items = [...box.querySelectorAll("[tabindex]")];
  if (items.length) items[0].tabIndex = 0;
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const now = items.indexOf(document.activeElement);
    const next = items[now + step];
    if (now < 0 || !next) return;
    event.preventDefault();
    items[now].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  hide();
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.folded = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-folded]")) {
    details.open = false;
    delete details.dataset.folded;
  }
});
