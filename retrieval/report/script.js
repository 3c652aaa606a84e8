// Tabs, filters, order, pages and keys of the report. The selection is kept in location.hash alone,
// so that reload, shared links and the back button show the same part and the same queries. A single-file report has all
// rows in the page; a report with a folder loads rows from chunk scripts on demand.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const facets = typeof lookalike === "object" ? lookalike.facets : null;
  if (!facets) {  // the page was copied without its folder: its own queries are still readable
    byId("filter").hidden = false;
    byId("filter").textContent = "Only the first page is available: the folder beside it is missing.";
    return;
  }
  const list = byId("list"), bar = byId("filter"), status = byId("status");
  const buttons = bar.querySelectorAll("button"), sortBy = byId("sort"), classBy = byId("class");
  const pagers = document.querySelectorAll(".pages"), tabs = [...byId("tabs").children];
  const numbers = (text) =>
    new Int32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const { states, classes } = facets;
  const classOf = numbers(facets.of), margin = numbers(facets.margin);
  const classNumber = new Map(classes.map((name, number) => [name, number]));
  const letters = { right: "r", wrong: "w", failed: "f" };
  const grouped = (number) => number.toLocaleString("en");
  const inPage = [...list.children];  // the first queries by name; in a single-file report, all

  // --- selection
  const panelOf = (tab) => byId(tab.id.replace("tab-", ""));
  const firstTab = panelOf(tabs[0]).id;  // a link without a tab is one to matches
  const plain = {
    tab: firstTab === "matches" ? firstTab : "", show: "all", class: "", sort: "name", page: "1",
  };
  function link(changes) {
    const wanted = { ...chosen, page: "1", ...changes };
    const changed = Object.entries(wanted).filter(([key, value]) => String(value) !== plain[key]);
    return "#" + (new URLSearchParams(changed) || "");
  }
  function read() {
    const params = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.keys(plain).map((key) => [key, params.get(key) ?? plain[key]]));
  }
  let chosen = read(), selected = [], pages = 1, page = 1;

  const orders = {};  // cached by sort
  function order(sort) {
    if (orders[sort]) return orders[sort];
    const all = Array.from({ length: states.length }, (_, query) => query);
    const sign = { least: 1, most: -1 }[sort];
    if (!sign) return (orders[sort] = all);
    const known = all.filter((query) => margin[query] >= 0);
    known.sort((one, other) => sign * (margin[one] - margin[other]) || one - other);
    return (orders[sort] = known.concat(all.filter((query) => margin[query] < 0)));
  }
  function find() {
    const group = chosen.class ? classNumber.get(chosen.class) ?? -2 : null;
    const inClass = order(chosen.sort).filter((query) => group === null || classOf[query] === group);
    const having = (letter) => inClass.filter((query) => states[query] === letter);
    const by = { all: inClass, wrong: having("w"), failed: having("f") };
    for (const button of buttons) {
      button.querySelector("span").textContent = grouped(by[button.value].length);
      button.disabled = !by[button.value].length && button.value !== chosen.show;
    }
    return by[chosen.show] || (letters[chosen.show] ? having(letters[chosen.show]) : inClass);
  }

  // --- loading rows
  const chunks = new Map(), arrived = new Map(), KEPT = 400;
  lookalike.chunk = (number, rows) => arrived.set(number, rows);
  function chunk(number) {
    if (!chunks.has(number)) {
      chunks.set(number, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = facets.chunks + String(number).padStart(5, "0") + ".js";
        script.onload = () => (script.remove(), resolve(arrived.get(number)), arrived.delete(number));
        script.onerror = () => (script.remove(), chunks.delete(number), reject(number));
        document.head.append(script);
      }));
      if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
    }
    return chunks.get(number);
  }
  async function row(query) {
    if (inPage[query]) return inPage[query];
    const rows = await chunk(Math.floor(query / facets.chunk));
    const drawn = document.createElement("template");
    drawn.innerHTML = rows[query % facets.chunk];
    return drawn.content.firstElementChild;
  }

  // --- tabs
  byId("tabs").setAttribute("role", "tablist");
  for (const tab of tabs) {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panelOf(tab).id);
    panelOf(tab).setAttribute("role", "tabpanel");
    panelOf(tab).setAttribute("aria-labelledby", tab.id);
  }
  function showTab() {
    const wanted = chosen.tab || (location.hash.includes("=") ? "matches" : firstTab);
    const open = tabs.find((tab) => panelOf(tab).id === wanted) ?? tabs[0];
    chosen.tab = panelOf(open).id;
    for (const tab of tabs) {
      tab.href = link({ page: chosen.page, tab: panelOf(tab).id });
      tab.setAttribute("aria-selected", String(tab === open));
      tab.tabIndex = tab === open ? 0 : -1;
      panelOf(tab).hidden = tab !== open;
    }
  }
  byId("tabs").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = tabs.indexOf(event.target), last = tabs.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0,
      End: last, " ": at }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    tabs[to].focus();
    tabs[to].click();
  });

  // --- rendering
  let turn = 0, current = null, arriveAt = null;
  async function show() {
    const mine = ++turn;
    chosen = read();
    showTab();
    selected = find();
    pages = Math.max(1, Math.ceil(selected.length / facets.page));
    page = Math.min(pages, Math.max(1, parseInt(chosen.page, 10) || 1));
    controls();
    const first = (page - 1) * facets.page;
    let rows;
    try {
      rows = await Promise.all(selected.slice(first, first + facets.page).map(row));
    } catch {
      status.textContent = "These queries could not be loaded; check that the folder beside the page is complete.";
      return;
    }
    if (mine !== turn) return;  // the selection changed meanwhile
    if (rows.length !== list.children.length || rows.some((each, at) => each !== list.children[at])) {
      list.replaceChildren(...rows);
    }
    list.removeAttribute("aria-busy");
    byId("empty").hidden = rows.length > 0;
    status.textContent = pages > 1
      ? `${grouped(first + 1)}–${grouped(first + rows.length)} of ${grouped(selected.length)} queries`
      : `${grouped(selected.length)} of ${grouped(states.length)} queries`;
    arrive();
  }
  function controls() {
    list.setAttribute("aria-busy", "true");
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.value === chosen.show));
    }
    if (sortBy) sortBy.value = chosen.sort;
    if (classBy) classBy.value = chosen.class;
    for (const pager of pagers) {
      pager.hidden = pages < 2;
      const field = pager.querySelector("input");
      field.max = pages;
      field.value = page;
      pager.querySelector(".of").textContent = grouped(pages);
      for (const [rel, to] of [["prev", page - 1], ["next", page + 1]]) {
        const step = pager.querySelector(`[rel=${rel}]`);
        const there = to >= 1 && to <= pages;
        step.toggleAttribute("aria-disabled", false);
        if (there) step.href = link({ page: to });
        else {
          step.removeAttribute("href");
          step.setAttribute("aria-disabled", "true");
        }
      }
    }
  }
  function arrive() {
    if (current && !current.isConnected) mark(null);
    const at = arriveAt;
    arriveAt = null;
    if (at === "first" || at === "last") walkTo(at === "first" ? list.firstElementChild : list.lastElementChild);
    if (at === "top" && byId("queries").getBoundingClientRect().top < 0) byId("queries").scrollIntoView();
    if (at === "heading") {
      byId("queries").scrollIntoView();
      byId("queries").focus({ preventScroll: true });
    }
  }
  function go(changes, at) {
    const to = link(changes);
    arriveAt = at;
    if (to === (location.hash || "#")) show();
    else location.hash = to;
  }

  // --- keys
  function mark(query) {
    if (current) current.removeAttribute("aria-current");
    current = query;
    if (current) current.setAttribute("aria-current", "true");
  }
  function walkTo(query) {
    mark(query);
    if (!query) return;
    query.focus({ preventScroll: true });
    query.scrollIntoView();
  }
  function step(by) {
    const all = [...list.children];
    const edge = bar.getBoundingClientRect().bottom - 4;
    const top = (query) => query.getBoundingClientRect().top;
    let next = all.indexOf(current) + by;
    if (next === by - 1 || top(current) > innerHeight
        || current.getBoundingClientRect().bottom < edge) {  // continue from the visible queries
      const below = all.findIndex((query) => top(query) >= edge);
      next = by > 0 ? (below < 0 ? all.length : below) : (below < 0 ? all.length : below) - 1;
    }
    if (all[next]) walkTo(all[next]);
    else turnPage(by, by > 0 ? "first" : "last");
  }
  function turnPage(by, at) {
    if (page + by >= 1 && page + by <= pages) go({ page: page + by }, at);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("select, input")) return;
    if (byId("matches").hidden) return;
    const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    const over = { n: 1, p: -1 }[event.key];
    if (by || over) event.preventDefault();
    if (by) step(by);
    if (over) turnPage(over, "first");
    if (event.key === "Escape") document.activeElement.blur();
  });

  // --- controls
  for (const button of buttons) {
    button.addEventListener("click", () => go({ show: button.value }, "top"));
  }
  if (sortBy) sortBy.addEventListener("change", () => go({ sort: sortBy.value }, "top"));
  if (classBy) {
    classBy.addEventListener("input", () => {  // limit the list, since there may be 20,000 classes
      const typed = classBy.value.toLowerCase();
      const fit = classes.filter((name) => name.toLowerCase().includes(typed)).slice(0, 40);
      byId("classes").replaceChildren(...fit.map((name) => new Option("", name)));
    });
    classBy.addEventListener("focus", () => classBy.dispatchEvent(new Event("input")));
    classBy.addEventListener("change", () => {
      const typed = classBy.value, low = typed.toLowerCase();
      const name = classNumber.has(typed) ? typed : classes.find((each) => each.toLowerCase() === low);
      go({ class: name ?? typed }, "top");
    });
  }
  for (const pager of pagers) {
    const field = pager.querySelector("input");
    pager.querySelector("b").replaceWith(field);
    field.hidden = false;
    field.addEventListener("change", () => go({ page: field.value }, "heading"));
    for (const step of pager.querySelectorAll("a")) {
      step.addEventListener("click", () => (arriveAt = step.href ? "heading" : null));
    }
  }
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    go({ page: chosen.page, tab: "matches" }, "heading");
  });
  for (const why of document.querySelectorAll(".why")) why.href = "#show=failed";
  for (const to of document.querySelectorAll(".classes a, .why")) {
    to.addEventListener("click", () => (arriveAt = "heading"));
  }
  addEventListener("hashchange", () => {
    if (!location.hash || location.hash.includes("=") || location.hash === "#") show();
  });
  document.addEventListener("error", (event) => {  // a picture that was moved or deleted
    if (event.target.matches?.(".picture > img")) event.target.replaceWith(missing(event.target.alt));
  }, true);
  function missing(alt) {
    const tile = document.createElement("span");
    tile.className = "none";
    tile.setAttribute("role", "img");
    tile.setAttribute("aria-label", alt + ", missing");
    tile.textContent = "missing";
    return tile;
  }
  bar.hidden = false;
  show();
})();
