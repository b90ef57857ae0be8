// Draws what the server answered. Every text is set as text, never as HTML.

/** An element with a class, a text, and children. */
export function element(name, kind = "", text = "", ...children) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/** A button; its spoken name is `label`, or else its text. */
export function button(text, label, click) {
  const made = element("button", "", text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", click);
  return made;
}

const spoken = (name) => name.replaceAll("_", " ");

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  for (; bytes >= 999.5 && power + 1 < units.length; power++) bytes /= 1000;
  return `${bytes >= 100 ? Math.round(bytes) : Number(bytes.toPrecision(3))} ${units[power]}`;
}

const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

/** How an item moved since the last answer; `before`: its places then, or null. */
function movement(item, rank, before) {
  if (!before) return null;
  const then = before.get(String(item));
  if (then === rank) return null;
  if (then === undefined) return element("span", "moved new", "new");
  const up = then > rank;
  return element("span", `moved ${up ? "up" : "down"}`, `${up ? "▲" : "▼"} was ${then}`);
}

const KINDS = {
  others: "the rest of the history",
  bias: "how popular it is, for everybody",
  intercept: "what a user without a history gets",
  user: "what training learned about this user",
  rest: "the rest of the model",
};

function parts(item) {
  const table = element("table");
  table.append(element("caption", "", "The score is the sum of:"));
  const body = table.createTBody();
  const rows = item.parts.map((part) => [
    part.part === "history" ? part.title : KINDS[part.part], part.share]);
  for (const [text, share] of [...rows, ["score", item.score]]) {
    const head = element("th", "", text);
    head.scope = "row";
    body.insertRow().append(head, element("td", "", signed(share)));
  }
  return table;
}

/** What the score of an item is made of, behind a summary. */
function explanation(item) {
  const best = item.parts.find((part) => part.part === "history" && part.share > 0);
  const found = element("details");
  found.append(element("summary", "", best ? `because of ${best.title}` : "why"));
  const draw = () => found.append(parts(item)); // once, when it is opened
  found.addEventListener("toggle", draw, { once: true });
  return found;
}

function row(item, model, before, act) {
  const title = element("span", "title", item.title);
  const moved = movement(item.item, item.rank, before);
  const found = element("li", "", "", element("span", "place", String(item.rank)),
    element("span", "", "", title, ...(moved ? [moved] : [])));
  const others = Object.entries(item.ranks).filter(([name]) => name !== model.name);
  if (others.length) {
    const places = others.map(([name, rank]) => `${spoken(name)} ${rank ?? "–"}`);
    found.append(element("span", "elsewhere", `elsewhere: ${places.join(" · ")}`));
  }
  found.append(element("span", "row", "",
    button("Like", `Like ${item.title}`, () => act.like(item)),
    button("Dislike", `Dislike ${item.title}`, () => act.dislike(item))));
  found.append(explanation(item));
  return found;
}

/** Where the typed text ranks. */
function newcomer(model, text) {
  if (!text) return [];
  if (!model.text) return [element("p", "newcomer", "It needs its language model for a new text.")];
  const { rank, of } = model.text;
  return [element("p", "newcomer",
    `The new item: place ${rank.toLocaleString("en")} of ${of.toLocaleString("en")}`)];
}

/** The list of one model. before: places of its last list, or null. */
export function list(model, text, before, act) {
  const heading = element("h3", "", spoken(model.name));
  heading.id = `model-${model.name}`;
  const found = element("section", "model", "", heading);
  found.setAttribute("aria-labelledby", heading.id);
  if (model.colour) {
    found.style.setProperty("--model", model.colour);
    found.style.setProperty("--model-dark", model.dark);
  }
  found.append(element("p", "about", model.about));
  found.append(element("p", "", `${size(model.bytes)} · ${model.milliseconds.toFixed(1)} ms`));
  found.append(...newcomer(model, text));
  const items = model.items.map((item) => row(item, model, before, act));
  if (!items.length) found.append(element("p", "", "No item is left."));
  found.append(element("ol", "", "", ...items));
  return found;
}
