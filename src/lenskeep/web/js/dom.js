// The page's hands. Text only ever enters as text: nothing here, and nothing that uses it, reads markup from a string.

export const byId = (id) => document.getElementById(id);

/** Make an element: `h("p", {class: "small"}, "text", child)`. Properties that are functions become listeners. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same in SVG's namespace. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A sentence of the device with its `commands` set apart, as nodes. */
export function sentence(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** Set text when it differs, so that a screen reader hears changes and the layout rests. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value === "" || value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** Make the children of `parent` be those of `items`, each made once per key and updated in place, so that focus stays. */
export function keep(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const done = new Set();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    if (done.has(key)) continue;
    done.add(key);
    let child = old.get(key);
    if (child) old.delete(key);
    else {
      child = make(item);
      child.dataset.key = key;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
  for (const left of old.values()) left.remove();
}

/**
 * Let a button work, or say why it does not. It stays focusable either way: whoever cannot use it must be able to
 * find out why.
 */
export function arm(button, reason, why = null) {
  mark(button, "aria-disabled", reason ? "true" : "");
  mark(button, "title", reason);
  if (why) {
    say(why, reason || "");
    mark(button, "aria-describedby", reason ? why.id : "");
  }
}

export function armed(button) {
  return button.getAttribute("aria-disabled") !== "true";
}

/** Fill a select without touching it while nothing has changed. */
export function options(select, entries, chosen) {
  const wanted = JSON.stringify(entries);
  if (select.dataset.entries !== wanted) {
    select.dataset.entries = wanted;
    select.replaceChildren(...entries.map(([value, text]) => h("option", { value }, text)));
  }
  if (select.value !== chosen) select.value = chosen;
}
