// Every task page: drafts, the lease, seconds in view, counts. Without this script the buttons do what matters.

const form = document.getElementById("answer");
const status = document.getElementById("status");
const SETTLE = 1000; // ms without a change before a draft is sent
const RENEW = 10 * 60 * 1000; // ms between drafts that are sent only to keep the task, while somebody looks at it
const RETRY = 10 * 1000;

// Seconds in view. They go into the draft too, so that a reload goes on counting.
const clock = form.elements.active_seconds;
let seen = Number(clock.value) || 0;
let since = document.hidden ? null : performance.now();

function tick() {
  const now = performance.now();
  if (since !== null) seen += (now - since) / 1000;
  since = document.hidden ? null : now;
  clock.value = Math.min(seen, 86400).toFixed(1);
}

// Drafts. There are none of a correction: the page says so by leaving the address out.
let changed = false;
let leaving = false;
let timer = 0;
let sending = Promise.resolve();

function say(text) {
  if (status.textContent !== text) status.textContent = text; // it is read aloud: only when there is news
}

async function send(keepalive) {
  clearTimeout(timer);
  tick();
  changed = false;
  try {
    const reply = await fetch(form.dataset.draft, {
      method: "POST", body: new FormData(form), redirect: "manual", keepalive,
    });
    if (reply.status === 204) {
      const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      say(`Draft saved, ${time}`);
    } else if (reply.type === "opaqueredirect") say("Not saved: you are signed out. Sign in again in another tab.");
    else if (reply.status === 409) say("Not saved: this task is answered already.");
    else throw new Error(reply.status);
  } catch {
    changed = true;
    say("Not saved yet: the server does not answer.");
    timer = setTimeout(save, RETRY);
  }
}

function save() {
  sending = sending.then(() => send(false)); // one at a time, so that the last one stays
}

function saveOnLeaving() {
  if (changed && !leaving) send(true);
}

if (form.dataset.draft) {
  form.elements.back.hidden = true; // the button to save a draft: that goes by itself
  form.addEventListener("input", () => {
    changed = true;
    clearTimeout(timer);
    timer = setTimeout(save, SETTLE);
  });
  window.addEventListener("beforeunload", saveOnLeaving); // ahead of the request for the next page, or of signing out
  window.addEventListener("pagehide", saveOnLeaving); // where there is no such event
  setInterval(() => { if (!document.hidden) save(); }, RENEW);
}
document.addEventListener("visibilitychange", () => {
  tick();
  if (document.hidden && form.dataset.draft) saveOnLeaving();
});
window.addEventListener("submit", (event) => { // on the window, where it is known whether somebody has refused it
  tick();
  if (event.target === form && !event.defaultPrevented) leaving = true;
});
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); }); // gone back: as it is now

// What is ticked in a closed list is seen on its title.
function countTicks(list) {
  const ticked = list.querySelectorAll("input:checked").length;
  list.querySelector(".count").textContent = ticked ? `${ticked} ticked` : "";
}
for (const list of document.querySelectorAll(".ticks")) {
  countTicks(list);
  list.addEventListener("change", () => countTicks(list));
}

// Characters as the server counts them: code points.
for (const field of form.querySelectorAll("[data-count]")) {
  const place = document.getElementById(field.dataset.count);
  const count = () => { place.textContent = `${[...field.value].length} of ${field.maxLength} characters`; };
  field.addEventListener("input", count);
  count();
}
