// The ranking page: keys, the board, undo. The radio buttons hold the state, whoever sets them: keys, mouse or browser.

const form = document.getElementById("answer");
const cards = [...form.querySelectorAll(".card")];
const rated = form.dataset.rate === "yes";
const board = document.getElementById("board");
const undoButton = document.getElementById("undo");
const submitButton = document.getElementById("send");
const submitName = submitButton.textContent;
const keys = document.getElementById("keys");
const problem = document.getElementById("problem");

// Ranks and qualities: 0 is none.
const buttons = (card, what) => [...card.querySelectorAll(`input[name^="${what}_"]`)];
const chosen = (card, what) => Number(buttons(card, what).find((button) => button.checked)?.value ?? 0);
const choose = (card, what, value) =>
  buttons(card, what).forEach((button) => { button.checked = Number(button.value) === value; });
const isRanked = (card) => chosen(card, "rank") > 0;
const isRated = (card) => !rated || chosen(card, "quality") > 0;
const isWhole = (card) => isRanked(card) && isRated(card);

function ordinal(n) {
  const ending = { one: "st", two: "nd", few: "rd", other: "th" };
  return n + ending[new Intl.PluralRules("en", { type: "ordinal" }).select(n)];
}

// The current card, which the keys are for.
let current = cards.find((card) => !isWhole(card)) ?? cards[0];

function mark(card) {
  current.removeAttribute("aria-current");
  current = card;
  current.setAttribute("aria-current", "true");
}

function goTo(card) {
  mark(card);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: card.offsetHeight > 0.8 * innerHeight ? "start" : "nearest" });
}

function nextWithout(test) { // the first after the current card, then from the top
  const here = cards.indexOf(current) + 1;
  return [...cards.slice(here), ...cards.slice(0, here)].find((card) => !test(card));
}

// Undo: what every change of a rank or a quality has left behind.
const snapshot = () => cards.map((card) => [chosen(card, "rank"), chosen(card, "quality")]);
const past = [];
let now = snapshot();

function noteChange() {
  const before = now;
  now = snapshot();
  if (String(before) !== String(now)) past.push(before);
  refresh();
}

function undo() {
  const before = past.pop();
  if (!before) return;
  const touched = cards.filter((_, i) => String(before[i]) !== String(now[i]));
  cards.forEach((card, i) => {
    choose(card, "rank", before[i][0]);
    choose(card, "quality", before[i][1]);
  });
  now = before;
  tellOthers();
  goTo(touched[0]);
}

function tellOthers() { // task.js, that there is a draft to save; and the listener below
  form.dispatchEvent(new Event("input", { bubbles: true }));
  form.dispatchEvent(new Event("change", { bubbles: true }));
}

function set(card, what, value) {
  choose(card, what, value);
  tellOthers();
}

form.addEventListener("change", noteChange);

// What is seen of it: states, the board, the button.
function refresh() {
  const rows = new Map();
  for (const card of cards) rows.set(chosen(card, "rank"), [...(rows.get(chosen(card, "rank")) ?? []), card]);
  for (const card of cards) {
    const rank = chosen(card, "rank");
    const ties = rows.get(rank).filter((other) => other !== card).map((other) => other.dataset.name);
    const tied = ties.length ? `, tied with ${ties.join(", ")}` : "";
    card.querySelector(".state").textContent = rank ? ordinal(rank) + tied : "not ranked yet";
  }
  board.querySelectorAll(".row").forEach((row) => {
    const inside = rows.get(Number(row.dataset.rank)) ?? [];
    row.lastElementChild.replaceChildren(...inside.map((card) => chips.get(card)));
  });
  const ranked = cards.filter(isRanked).length;
  const rates = rated ? `, ${cards.filter(isRated).length} rated` : "";
  const whole = cards.every(isWhole);
  submitButton.textContent = whole ? submitName : `${submitName}: ${ranked} of ${cards.length} ranked${rates}`;
  undoButton.disabled = !past.length;
  if (whole) problem.textContent = "";
}

// The board: a row for each rank, and one for what has none; chips are dragged between them.
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const chips = new Map(cards.map((card) => [card, element("span", "chip", card.dataset.name)]));
const rowsOfBoard = element("ol", "");
for (const rank of [...cards.keys()].map((i) => i + 1).concat(0)) {
  const row = element("li", "row");
  row.dataset.rank = rank;
  row.append(element("span", "", rank ? ordinal(rank) : "not yet"), element("span", ""));
  rowsOfBoard.append(row);
}
board.append(element("h2", "", "Ranking"), rowsOfBoard);

let drag = null;
const rowAt = (x, y) => document.elementsFromPoint(x, y).find((found) => found.classList.contains("row"));

function showTarget(row) {
  board.querySelectorAll(".row").forEach((other) => other.classList.toggle("over-it", other === row));
}

function endDrag() {
  drag.chip.style.transform = ""; // by script: the policy forbids style attributes, not this
  drag.chip.classList.remove("dragged");
  showTarget(null);
  drag = null;
}

for (const [card, chip] of chips) {
  chip.title = "Drag to a row";
  chip.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault(); // no selection of text
    chip.setPointerCapture(event.pointerId);
    drag = { chip, x: event.pageX, y: event.pageY, moved: false };
  });
  chip.addEventListener("pointermove", (event) => {
    if (drag?.chip !== chip) return;
    const [dx, dy] = [event.pageX - drag.x, event.pageY - drag.y];
    drag.moved ||= Math.hypot(dx, dy) > 4;
    if (!drag.moved) return;
    chip.classList.add("dragged");
    chip.style.transform = `translate(${dx}px, ${dy}px)`;
    showTarget(rowAt(event.clientX, event.clientY));
  });
  chip.addEventListener("pointerup", (event) => {
    if (drag?.chip !== chip) return;
    const row = drag.moved ? rowAt(event.clientX, event.clientY) : null;
    const clicked = !drag.moved;
    endDrag();
    if (clicked) goTo(card);
    else if (row) {
      set(card, "rank", Number(row.dataset.rank));
      mark(nextWithout(isWhole) ?? card);
    }
  });
  chip.addEventListener("pointercancel", () => { if (drag) endDrag(); });
}

// Keys. Fields keep theirs: nothing fires while typing, and arrows in a row of radio buttons stay the browser's.
function digitOf(event) { // by place where Shift is held (it makes "!" of 1), and where a layout needs Shift for digits
  const found = /^(Digit|Numpad)([1-9])$/.exec(event.code);
  if (found?.[1] === "Numpad" && event.key !== found[2]) return 0; // Num Lock is off: an arrow
  return found ? Number(found[2]) : 0;
}

function rankCurrent(rank) {
  set(current, "rank", rank);
  goTo(nextWithout(isRanked) ?? nextWithout(isWhole) ?? current);
}

function rateCurrent(quality) { // and stay, in every state: a digit that follows ranks this very card
  set(current, "quality", quality);
  goTo(current);
}

function step(by) {
  goTo(cards[Math.min(Math.max(cards.indexOf(current) + by, 0), cards.length - 1)]);
}

function act(event) { // whether this key was ours
  const { key, shiftKey, target } = event;
  const digit = digitOf(event);
  const free = target === document.body || target === document.documentElement || cards.includes(target);
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && !shiftKey) undo();
    else if (key === "Enter") form.requestSubmit(submitButton);
    else return false;
  } else if (digit && shiftKey) {
    if (!rated || digit > 7) return false;
    rateCurrent(digit);
  } else if (digit && digit <= cards.length) rankCurrent(digit);
  else if (key === "u" && !shiftKey) undo();
  else if (key === "?") keys.showModal();
  else if (free && !shiftKey && (key === "ArrowDown" || key === "ArrowRight")) step(1);
  else if (free && !shiftKey && (key === "ArrowUp" || key === "ArrowLeft")) step(-1);
  else if (free && key === "Enter") form.requestSubmit(submitButton);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || keys.open) return;
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a finger that rests on a digit ranks one completion
  if (event.target.closest?.("textarea, select, .skip, input:not([type=radio], [type=checkbox])")) return;
  if (act(event)) event.preventDefault();
});

// Wherever the focus or the mouse goes, that card is meant.
cards.forEach((card) => card.addEventListener("focusin", () => mark(card)));

form.addEventListener("submit", (event) => {
  if (event.submitter && event.submitter !== submitButton) return; // a draft may be incomplete
  const missing = cards.find((card) => !isWhole(card));
  if (!missing) return;
  event.preventDefault();
  const what = isRanked(missing) ? "quality" : "rank";
  problem.textContent = `${cards.filter(isRanked).length} of ${cards.length} ranked: ${missing.dataset.name} has no ${what} yet.`;
  goTo(missing);
});

// Side by side or stacked, as last time.
const stack = document.getElementById("stack");

function arrange(stacked) {
  form.classList.toggle("stacked", stacked);
  stack.setAttribute("aria-pressed", String(stacked));
}

stack.addEventListener("click", () => {
  const stacked = stack.getAttribute("aria-pressed") !== "true";
  arrange(stacked);
  try { localStorage.setItem("tutelage stacked", stacked); } catch { /* kept for this page only */ }
});
try { arrange(localStorage.getItem("tutelage stacked") === "true"); } catch { /* storage is off */ }
document.getElementById("help").addEventListener("click", () => keys.showModal());
undoButton.addEventListener("click", undo);

form.noValidate = true; // the refusal above says more than the browser's
form.classList.add("scripted");
document.querySelector("main").classList.add("wide");
for (const part of [stack, board, undoButton, document.getElementById("help")]) part.hidden = false;
mark(current);
refresh();
