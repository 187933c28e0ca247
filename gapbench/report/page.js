"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const data = JSON.parse(by("data").textContent);
  const thumbnails = JSON.parse(by("thumbnails").textContent);
  const { runs, judges, prompts, entries, groups } = data;
  const total = entries.prompt.length;
  const ABSTAINED = null, NOT_ASKED = -1;
  const controls = ["q", "category", "tier", "run", "judge", "quadrant", "group", "sort"];
  const gallery = by("gallery"), detail = by("detail");
  const texts = prompts.text.map((text) => text.toLowerCase());

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const said = (verdict) => (verdict === 1 ? "yes" : verdict === 0 ? "no" : "no verdict");

  // --- verdicts

  const outside = (run, entry, judge) => {
    const place = judge === "" ? run.judge[entry] : Number(judge);
    const mine = place === null || place < 0 ? null : run.outside[place];
    const verdict = mine ? mine[entry] : ABSTAINED;
    return verdict === NOT_ASKED ? ABSTAINED : verdict;
  };
  const quadrant = (run, entry, judge) => {
    const own = run.own[entry], other = outside(run, entry, judge);
    return own === null || other === null ? "none" : `${own}${other}`;
  };

  // --- choice: controls <-> address

  const value = (id) => by(id).value;
  const keyOf = (entry) => {
    const prompt = entries.prompt[entry];
    return [prompts.task[prompt], prompts.id[prompt], entries.sample[entry]].join("/");
  };
  const placeOf = new Map();
  for (let entry = total - 1; entry >= 0; entry--) placeOf.set(keyOf(entry), entry);

  function remember() {
    const words = new URLSearchParams();
    for (const id of controls) if (value(id) !== by(id).dataset.usual) words.set(id, value(id));
    if (opened !== null) words.set("image", keyOf(opened));
    history.replaceState(null, "", "#" + words);
  }

  function recall() {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const id of controls) {
      const wanted = words.get(id) ?? by(id).dataset.usual;
      by(id).value = wanted;
      if (by(id).value !== wanted) by(id).value = by(id).dataset.usual;
    }
    choose();
    const entry = placeOf.get(words.get("image") ?? "");
    if (entry === undefined) { if (detail.open) detail.close(); } else open(entry);
  }

  function fill(id, values, label = (each) => each) {
    for (const each of values) {
      const option = make("option", "", label(each));
      option.value = each;
      by(id).append(option);
    }
  }

  // --- filter and order

  let chosen = [];
  function choose() {
    const words = value("q").toLowerCase().split(/\s+/).filter(Boolean);
    const [category, tier, judge, quad, group] = ["category", "tier", "judge", "quadrant", "group"].map(value);
    const run = runs[Number(value("run"))];
    const wanted = prompts.text.map((_, prompt) =>
      (!tier || prompts.tier[prompt] === tier) &&
      (!category || `${prompts.task[prompt]}/${prompts.category[prompt]}` === category) &&
      words.every((word) => texts[prompt].includes(word)));
    chosen = [];
    for (let entry = 0; entry < total; entry++) {
      if (!wanted[entries.prompt[entry]]) continue;
      if (quad && (run.image[entry] === null || quadrant(run, entry, judge) !== quad)) continue;
      if (group && groups[entry] !== group) continue;
      chosen.push(entry);
    }
    const rank = {
      yes: (p) => -p, no: (p) => p, sure: (p) => -Math.abs(p - 0.5), unsure: (p) => Math.abs(p - 0.5),
    }[value("sort")];
    if (rank) {
      const ranks = new Float64Array(total);
      for (const entry of chosen) ranks[entry] = run.p[entry] === null ? Infinity : rank(run.p[entry]);
      chosen.sort((a, b) => (ranks[a] === ranks[b] ? a - b : ranks[a] < ranks[b] ? -1 : 1));
    }
    const what = runs.length > 1 ? "images of each run" : "images";
    by("count").textContent = `${chosen.length.toLocaleString("en")} of ${total.toLocaleString("en")} ${what}`;
    at = Math.max(0, Math.min(at, chosen.length - 1));
    clear();
    layout();
  }

  // --- the cards that are on the screen, and only those

  const GAP = 10, TEXT = 41, LINES = 40, EDGE = 20;
  let columns = 1, wide = 0, tall = 0, at = 0;
  const cards = new Map();

  function clear() {
    for (const card of cards.values()) card.remove();
    cards.clear();
  }

  function layout() {
    const room = gallery.clientWidth;
    const least = runs.length === 1 ? 150 : Math.min(room, 130 * runs.length + EDGE);
    columns = Math.max(1, Math.floor((room + GAP) / (least + GAP)));
    wide = (room - GAP * (columns - 1)) / columns;
    tall = Math.ceil((wide - EDGE) / runs.length + LINES + TEXT + EDGE);
    const rows = Math.ceil(chosen.length / columns);
    gallery.style.height = `${Math.max(0, rows * (tall + GAP))}px`;
    for (const card of cards.values()) put(card);
    render();
  }

  function put(card) {
    const place = Number(card.dataset.place);
    card.style.width = `${wide}px`;
    card.style.height = `${tall}px`;
    card.style.transform = `translate(${(place % columns) * (wide + GAP)}px, ${Math.floor(place / columns) * (tall + GAP)}px)`;
  }

  function render() {
    const top = gallery.getBoundingClientRect().top, step = tall + GAP;
    const first = Math.max(0, Math.floor((-top - 400) / step)) * columns;
    const last = Math.min(chosen.length, Math.ceil((innerHeight + 400 - top) / step) * columns);
    for (const [place, card] of cards) {
      if ((place < first || place >= last) && !card.contains(document.activeElement)) {
        card.remove();
        cards.delete(place);
      }
    }
    for (let place = first; place < last; place++) if (!cards.has(place)) add(place);
  }

  function add(place) {
    const entry = chosen[place], prompt = entries.prompt[entry];
    const card = make("div", "card");
    card.setAttribute("role", "listitem");
    card.setAttribute("aria-setsize", String(chosen.length));
    card.setAttribute("aria-posinset", String(place + 1));
    card.dataset.place = String(place);
    const button = make("button");
    button.type = "button";
    button.tabIndex = place === at ? 0 : -1;
    button.addEventListener("click", () => { at = place; open(entry); });
    button.addEventListener("focus", () => { at = place; });
    const pictures = make("span", "pictures");
    runs.forEach((run, number) => pictures.append(picture(run, number, entry)));
    button.append(pictures, make("span", "prompt", prompts.text[prompt]));
    card.append(button);
    put(card);
    cards.set(place, card);
    // In the order of the list, for those who go through it by ear.
    let after = null;
    for (const other of cards.keys()) if (other > place && (after === null || other < after)) after = other;
    gallery.insertBefore(card, after === null ? null : cards.get(after));
  }

  function source(run, number, entry) {
    const place = entry * runs.length + number;
    return (place < thumbnails.length && thumbnails[place]) || link(run, entry);
  }
  const link = (run, entry) => run.folder && `${run.folder}${run.image[entry].slice(0, 2)}/${run.image[entry]}.png`;

  function image(address, fallback) {
    const node = make("img");
    node.alt = "";
    node.decoding = "async";
    node.addEventListener("load", () => node.classList.toggle("small", node.naturalWidth < 100));
    if (fallback) node.addEventListener("error", () => { node.src = fallback; }, { once: true });
    node.src = address;
    return node;
  }

  function picture(run, number, entry) {
    const box = make("span", "picture");
    if (run.image[entry] === null) {
      box.classList.add("snone");
      box.append(make("span", "lacking"), make("span", "", "not drawn"));
      return box;
    }
    const judge = value("judge"), p = run.p[entry];
    box.classList.add("s" + quadrant(run, entry, judge));
    const own = `own ${said(run.own[entry])}${p === null ? "" : " " + p.toFixed(2)}`;
    const address = source(run, number, entry);
    box.append(address ? image(address) : make("span", "lacking"), make("span", "", `${own}\njudge ${said(outside(run, entry, judge))}`));
    return box;
  }

  // --- one entry, large

  let opened = null;
  const WORDS = {
    "10": "false positive: accepts, judge rejects", "01": "misunderstanding: rejects, judge accepts",
    "00": "weak generation: both reject", "11": "both accept", none: "a verdict is missing",
  };

  function open(entry) {
    opened = entry;
    const prompt = entries.prompt[entry], place = chosen.indexOf(entry);
    by("detail-title").textContent = prompts.text[prompt];
    const group = groups && groups[entry] ? `; correction group (${[...groups[entry]].join(", ")})` : "";
    by("detail-about").textContent = `${prompts.task[prompt]}/${prompts.category[prompt]}, ${prompts.tier[prompt]}; ` +
      `prompt ${prompts.id[prompt]}, sample ${entries.sample[entry]}${group}`;
    by("place").textContent = place < 0 ? "not in the choice" : `${place + 1} of ${chosen.length}`;
    by("previous").disabled = place <= 0;
    by("following").disabled = place < 0 || place + 1 >= chosen.length;
    by("detail-images").replaceChildren(...runs.map((run, number) => figure(run, number, entry)));
    if (place >= 0) at = place;
    if (!detail.open) detail.showModal();
    remember();
  }

  function figure(run, number, entry) {
    const box = make("figure");
    box.append(make("h3", "", run.name));
    if (run.image[entry] === null) {
      box.append(make("p", "", "This run has no image of it."));
      return box;
    }
    const code = quadrant(run, entry, value("judge"));
    box.className = "s" + code;
    const place = entry * runs.length + number;
    const address = link(run, entry) || thumbnails[place];
    const large = address ? image(address, thumbnails[place]) : make("p", "", "Packed; this page has no copy of it.");
    large.alt = `Drawn for: ${prompts.text[entries.prompt[entry]]}`;
    const facts = make("dl");
    const fact = (name, text) => {
      const row = make("div");
      row.append(make("dt", "", name), make("dd", "", text));
      facts.append(row);
    };
    const because = (reasons) => (reasons && reasons[entry] ? ` (${reasons[entry]})` : "");
    fact("verdicts", WORDS[code]);
    fact("own", said(run.own[entry]) + (run.p[entry] === null ? "" : `, probability ${run.p[entry]}`) + because(run.own_reasons));
    judges.forEach((name, place) => {
      const verdicts = run.outside[place];
      if (verdicts && verdicts[entry] !== NOT_ASKED) fact(name, said(verdicts[entry]) + because(run.reasons[place]));
    });
    box.append(large, facts);
    if (run.folder) {
      const full = make("a", "", "the image's file");
      full.href = link(run, entry);
      box.append(full);
    }
    return box;
  }

  function step(by_) {
    const place = chosen.indexOf(opened) + by_;
    if (opened !== null && chosen.indexOf(opened) >= 0 && place >= 0 && place < chosen.length) open(chosen[place]);
  }

  function focus(place) {
    if (place < 0 || place >= chosen.length) return;
    const before = cards.get(at);
    if (before) before.firstChild.tabIndex = -1;
    at = place;
    const y = gallery.getBoundingClientRect().top + Math.floor(place / columns) * (tall + GAP);
    if (y < 0 || y + tall > innerHeight) scrollBy(0, y - Math.max(0, (innerHeight - tall) / 2));
    render();
    const button = cards.get(place).firstChild;
    button.tabIndex = 0;
    button.focus({ preventScroll: true });
  }

  // --- start

  const categories = prompts.task.map((task, prompt) => `${task}/${prompts.category[prompt]}`);
  fill("category", new Set(categories));
  fill("tier", ["easy", "medium", "hard"].filter((tier) => prompts.tier.includes(tier)));
  fill("run", runs.keys(), (number) => runs[number].name);
  fill("judge", judges.keys(), (place) => judges[place]);
  if (groups) fill("group", ["010", "000", "001", "011", "100", "101", "110", "111"], (code) =>
    `(${[...code].join(", ")})${code === "010" ? " false positive corrected" : ""}`);
  by("run-label").hidden = runs.length === 1;
  by("judge-label").hidden = judges.length < 2;
  by("group-label").hidden = !groups;
  for (const id of controls) {
    by(id).dataset.usual = by(id).value;
    by(id).addEventListener("input", () => { at = 0; choose(); remember(); });
  }
  const filters = by("filters");
  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(() => { at = 0; choose(); remember(); }));
  by("skip").addEventListener("click", (event) => {
    event.preventDefault();
    by("gallery-part").focus();
  });
  by("previous").addEventListener("click", () => step(-1));
  by("following").addEventListener("click", () => step(1));
  by("close").addEventListener("click", () => detail.close());
  detail.addEventListener("close", () => {
    // The browser has put the focus back on the card that opened it; the moves since count.
    const place = chosen.indexOf(opened);
    opened = null;
    remember();
    if (place >= 0) focus(place);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (detail.open) {
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
    } else if (event.key === "/" && !typing) by("q").focus();
    else if (gallery.contains(event.target)) {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns,
        Home: 0, End: chosen.length - 1 };
      if (!(event.key in moves)) return;
      focus(moves[event.key]);
    } else return;
    event.preventDefault();
  });
  addEventListener("scroll", render, { passive: true });
  addEventListener("resize", render);
  addEventListener("hashchange", recall);
  new ResizeObserver(() => { if (gallery.clientWidth) layout(); }).observe(gallery.parentElement);
  recall();
})();
