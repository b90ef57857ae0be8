// State, requests and events. The state is in the fragment of the address, so it can be shared.
import { button, element, list } from "./lists.js";

const $ = (id) => document.getElementById(id);
const WAIT = 200; // milliseconds after the last key
const SLOW = 100; // milliseconds without an answer, after which the choices alone are drawn
const state = { history: [], disliked: [], user: "", diversity: 0, k: 10, text: "" };
const titles = new Map(); // id -> title
let before = new Map(); // model -> places of the items in its last list
let newest = 0; // number of the last request; older answers are dropped
let slow = 0; // a timer
let token = sessionStorage.getItem("kd_jax token") ?? "";

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.history = given.getAll("h");
  state.disliked = given.getAll("d");
  state.user = given.get("user") ?? "";
  state.text = given.get("text") ?? "";
  const [diversity, k] = [Number(given.get("diversity")), Number(given.get("k"))];
  state.diversity = diversity >= 0 && diversity <= 1 ? diversity : 0;
  state.k = [5, 10, 20, 50].includes(k) ? k : 10;
  $("user").value = state.user;
  $("text").value = state.text;
  $("diversity").value = state.diversity;
  $("diversity-value").textContent = state.diversity;
  $("size").value = state.k;
}

function toAddress() {
  const made = new URLSearchParams();
  for (const id of state.history) made.append("h", id);
  for (const id of state.disliked) made.append("d", id);
  if (state.user) made.set("user", state.user);
  if (state.diversity) made.set("diversity", state.diversity);
  if (state.k !== 10) made.set("k", state.k);
  if (state.text) made.set("text", state.text);
  const address = `#${made}`;
  if (address !== location.hash && (address !== "#" || location.hash)) {
    history.pushState(null, "", address === "#" ? location.pathname : address);
  }
}

/** The JSON of a route; throws an error with the server's line. */
async function ask(path, body) {
  const headers = { ...(body && { "Content-Type": "application/json" }) };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path,
    { headers, ...(body && { method: "POST", body: JSON.stringify(body) }) });
  const found = await answer.json();
  if (answer.status === 401) $("token-form").hidden = false;
  if (!answer.ok) throw new Error(found.error ?? `the server answered ${answer.status}`);
  return found;
}

function problem(error) {
  $("problem").textContent = error ? `${error.message}` : "";
}

async function lists() {
  const number = ++newest;
  const named = (ids) => ids.map((id) => `id:${id}`);
  const body = { history: named(state.history), disliked: named(state.disliked), k: state.k,
    diversity: state.diversity, text: state.text };
  if (state.user.trim()) body.user = state.user.trim();
  const began = performance.now();
  let found;
  try {
    found = await ask("/v1/compare", body);
  } catch (error) {
    if (number === newest) problem(error);
    return;
  }
  if (number !== newest) return;
  problem(null);
  const answered = performance.now();
  draw(found);
  const took = Math.max(1, Math.round(performance.now() - began));
  $("status").textContent = `${changes(found)} Answered in ${took} ms.`;
  $("lists").dataset.milliseconds = `${took} ${Math.round(answered - began)}`;
  before = new Map(found.models.map((model) => [model.name, places(model)]));
}

const places = (model) => new Map(model.items.map((item) => [String(item.item), item.rank]));

function changes(found) {
  if (!before.size) return "";
  const counts = found.models.map((model) => {
    const then = before.get(model.name);
    const fresh = model.items.filter((item) => !then?.has(String(item.item))).length;
    return `${model.name.replaceAll("_", " ")} ${fresh}`;
  });
  return `New items since the last lists: ${counts.join(", ")}.`;
}

function draw(found) {
  clearTimeout(slow); // all is drawn at once: drawing twice takes the browser a quarter longer
  for (const one of [...found.history, ...found.disliked]) titles.set(String(one.item), one.title);
  $("served").textContent = found.model;
  const open = document.activeElement;
  const label = $("lists").contains(open) ? open.getAttribute("aria-label") : null;
  $("lists").replaceChildren(...found.models.map((model) =>
    list(model, state.text, before.get(model.name), { like, dislike })));
  if (found.models.length === 1) {
    $("lists").append(element("p", "hint", "This export holds one model. The stage 'export' of a"
      + " later version also writes the others that were trained."));
  }
  chosen();
  const seen = found.known.map((one) => one.title).reverse().join(", ");
  $("known").textContent = seen ? `Before, in the data set: ${seen}` : "";
  if (label !== null) { // the button that was used is gone with its list
    const same = [...$("lists").querySelectorAll("button")]
      .find((one) => one.getAttribute("aria-label") === label);
    (same ?? $("lists").querySelector("button"))?.focus();
  }
}

/** The chosen items, with a button that takes each away. */
function chosen() {
  const rows = (ids, of) => ids.map((id) => {
    const title = titles.get(id) ?? id;
    const remove = button("×", `Remove ${title}`, () => {
      state[of] = state[of].filter((other) => other !== id);
      changed();
    });
    return element("li", "", "", element("span", "", title), remove);
  });
  $("history").replaceChildren(...rows([...state.history].reverse(), "history"));
  $("disliked").replaceChildren(...rows(state.disliked, "disliked"));
  $("disliked-title").hidden = !state.disliked.length;
}

function choose(item, to) {
  const id = String(item.item);
  titles.set(id, item.title);
  for (const of of ["history", "disliked"]) state[of] = state[of].filter((other) => other !== id);
  state[to].push(id);
  changed();
}
const like = (item) => choose(item, "history");
const dislike = (item) => choose(item, "disliked");

function changed() {
  toAddress();
  clearTimeout(slow);
  slow = setTimeout(chosen, SLOW);
  lists();
}

let searched = 0;
async function search() {
  const number = ++searched;
  try {
    const { items } = await ask(`/v1/search?q=${encodeURIComponent($("find").value)}`);
    if (number !== searched) return;
    $("found").replaceChildren(...items.map((item) => {
      const add = button("", "", () => like(item));
      add.append(element("span", "", item.title),
        element("span", "", item.clicks.toLocaleString("en")));
      return element("li", "", "", add);
    }));
    if (!items.length) $("found").append(element("li", "hint", "No title has these words."));
  } catch (error) {
    if (number === searched) problem(error);
  }
}

/** Calls `act` when nothing was typed for a moment. */
function typed(id, act) {
  let waiting;
  $(id).addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(act, WAIT);
  });
}

typed("find", search);
typed("user", () => { state.user = $("user").value; changed(); });
typed("text", () => { state.text = $("text").value; changed(); });
$("diversity").addEventListener("input", () => {
  state.diversity = Number($("diversity").value);
  $("diversity-value").textContent = state.diversity;
  changed();
});
$("size").addEventListener("change", () => { state.k = Number($("size").value); changed(); });
$("clear").addEventListener("click", () => {
  Object.assign(state, { history: [], disliked: [] });
  changed();
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("kd_jax token", token);
  $("token-form").hidden = true;
  search();
  lists();
});
addEventListener("popstate", () => { fromAddress(); lists(); });

fromAddress();
search();
lists();
