// Shows the images of all runs as a grid: filtered, sorted, class by class, one run beside another, by keyboard too.
// The only script of the page; it reads the element #grid-data and asks for nothing else.
(() => {
  "use strict";
  const runs = JSON.parse(document.getElementById("grid-data").textContent);
  const section = document.getElementById("every-image");
  const find = (name) => section.querySelector("." + name);
  const [grid, status, dialog] = ["grid", "grid-status", "grid-one"].map(find);
  const form = find("grid-form").elements;
  const SIDE = 64, LARGE = 256;

  const make = (tag, name, text, parent) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const option = (select, value, text) => { make("option", "", text, select).value = value; };

  // One CSS rule per sheet, so that no tile carries a picture of its own.
  const rules = make("style", "", "", document.head).sheet;
  runs.forEach((run, r) => {
    run.rows = run.rows.map(([id, label, judged, score, dropped], place) =>
      ({ run, r, id, label, judged, score, dropped, place, doubted: judged !== null && judged !== label }));
    run.sheets.forEach((uri, s) => rules.insertRule(`.sheet-${r}-${s} { background-image: url("${uri}"); }`));
  });

  const paint = (element, row, size) => {
    const { columns, lines, side, rows } = row.run, each = columns * lines;
    const sheet = Math.floor(row.place / each), at = row.place % each;
    const height = Math.ceil(Math.min(each, rows.length - sheet * each) / columns);
    element.classList.add(`sheet-${row.r}-${sheet}`);
    element.style.backgroundSize = `${columns * size}px ${height * size}px`;
    element.style.backgroundPosition = `${-(at % columns) * size}px ${-Math.floor(at / columns) * size}px`;
    if (side <= 32) element.classList.add("pixels");
  };
  const judgement = (row) => row.judged === null ? "" : `judged ${row.run.classes[row.judged] ?? row.judged}`;
  const words = (row) => [row.run.classes[row.label], judgement(row), row.score === null ? "" : `score ${row.score}`,
    row.dropped && `left out: ${row.dropped}`].filter(Boolean).join(", ");

  const number = (input) => input.value === "" || Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber;
  const wanted = () => {
    const low = number(form.low), high = number(form.high), show = form.show.value, label = form.class.value;
    return (row) =>
      (label === "" || row.run.classes[row.label] === label) &&
      (show !== "doubted" || row.doubted) && (show !== "agreed" || (row.judged !== null && !row.doubted)) &&
      (show !== "dropped" || row.dropped !== "") && (show !== "kept" || row.dropped === "") &&
      (low === null || (row.score !== null && row.score >= low)) &&
      (high === null || (row.score !== null && row.score <= high));
  };
  const last = (row, sign) => row.score === null ? Infinity : sign * row.score;
  const ORDERS = {
    worst: (a, b) => a.place - b.place,
    low: (a, b) => last(a, 1) - last(b, 1) || a.place - b.place,
    high: (a, b) => last(a, -1) - last(b, -1) || a.place - b.place,
    id: (a, b) => (a.id < b.id ? -1 : 1),
  };

  // Class -> the share of its rows that are judged otherwise.
  const doubted = (rows) => {
    const counts = new Map();
    rows.forEach((row) => {
      const name = row.run.classes[row.label], [n, bad] = counts.get(name) ?? [0, 0];
      counts.set(name, [n + 1, bad + row.doubted]);
    });
    return new Map([...counts].map(([name, [n, bad]]) => [name, bad / n]));
  };

  let tiles = [], rowOf = new Map(), opened = -1;
  const tile = (row, parent) => {
    const button = make("button", "tile", undefined, parent);
    button.type = "button";
    button.tabIndex = -1;
    button.setAttribute("aria-label", words(row));
    button.title = words(row);
    if (row.doubted) button.classList.add("doubted");
    if (row.dropped) button.classList.add("left-out");
    paint(button, row, SIDE);
    tiles.push(button);
    rowOf.set(button, row);
  };

  const draw = () => {
    const chosen = [runs[form.run.value], form.beside.value === "" ? null : runs[form.beside.value]].filter(Boolean);
    const keep = wanted(), order = ORDERS[form.order.value], parts = document.createDocumentFragment();
    const found = chosen.map((run) => run.rows.filter(keep).sort(order));
    tiles = [];
    rowOf = new Map();
    const names = form.group.checked ? [...new Set(chosen.flatMap((run) => run.classes))] : [null];
    if (form.group.checked && form.order.value === "worst") {
      const doubts = doubted(found[0]);
      names.sort((a, b) => (doubts.get(b) ?? 0) - (doubts.get(a) ?? 0));  // stable: others stay in their order
    }
    for (const name of names) {
      const groups = found.map((rows) => name === null ? rows : rows.filter((row) => row.run.classes[row.label] === name));
      if (groups.every((rows) => rows.length === 0)) continue;
      const block = make("section", "grid-class", undefined, parts);
      if (name !== null) make("h3", "", name, block);
      const columns = make("div", "grid-columns", undefined, block);
      groups.forEach((rows, i) => {
        const column = make("div", "grid-column", undefined, columns);
        const doubted = rows.filter((row) => row.doubted).length;
        const count = `${rows.length} image${rows.length === 1 ? "" : "s"}` + (doubted ? `, ${doubted} judged otherwise` : "");
        make("p", "grid-count", chosen.length > 1 ? `${chosen[i].title} (${chosen[i].name}): ${count}` : count, column);
        const box = make("div", "tiles-box", undefined, column);
        rows.forEach((row) => tile(row, box));
      });
    }
    grid.classList.toggle("alone", chosen.length === 1 && form.group.checked);
    grid.replaceChildren(parts);
    if (tiles.length) tiles[0].tabIndex = 0;
    const all = chosen.reduce((sum, run) => sum + run.rows.length, 0);
    status.textContent = `${tiles.length} of ${all} images shown.`;
  };

  const focus = (place) => {
    if (!tiles[place]) return;
    tiles.forEach((button) => { if (button.tabIndex === 0) button.tabIndex = -1; });
    tiles[place].tabIndex = 0;
    tiles[place].focus();
  };
  // The tile above or below: the nearest line in that direction, and there the nearest tile.
  const beyond = (place, direction) => {
    const from = tiles[place].getBoundingClientRect();
    let best = -1, line = Infinity, across = Infinity;
    for (let i = place + direction; tiles[i]; i += direction) {
      const to = tiles[i].getBoundingClientRect(), down = direction * (to.top - from.top);
      if (down < 1) continue;
      if (down > line + 1) break;
      const gap = Math.abs(to.left - from.left);
      if (down < line - 1 || gap < across) [best, line, across] = [i, down, gap];
    }
    return best;
  };
  grid.addEventListener("keydown", (event) => {
    const place = tiles.indexOf(event.target);
    if (place < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowRight: () => place + 1, ArrowLeft: () => place - 1, ArrowDown: () => beyond(place, 1),
      ArrowUp: () => beyond(place, -1), Home: () => 0, End: () => tiles.length - 1 }[event.key];
    if (!to) return;
    event.preventDefault();
    focus(to());
  });
  grid.addEventListener("click", (event) => {
    const place = tiles.indexOf(event.target);
    if (place >= 0) open(place);
  });

  const fact = (list, name, value) => {
    const pair = make("div", "", undefined, list);
    make("dt", "", name, pair);
    make("dd", "", value, pair);
  };
  const open = (place) => {
    const row = rowOf.get(tiles[place]);
    opened = place;
    const large = make("div", "large"), facts = make("dl", "facts");
    large.setAttribute("role", "img");
    large.setAttribute("aria-label", words(row));
    paint(large, row, LARGE);
    fact(facts, "class", row.run.classes[row.label]);
    if (row.judged !== null) fact(facts, "judge sees", row.run.classes[row.judged] ?? String(row.judged));
    if (row.score !== null) fact(facts, "score", String(row.score));
    fact(facts, "state", row.dropped ? `left out: ${row.dropped}` : "kept, or not selected yet");
    fact(facts, "row", row.id);
    fact(facts, "run", row.run.name);
    const command = make("pre");
    make("code", "", `diffaug show '${row.run.folder.replaceAll("'", "'\\''")}' ${row.id.slice(0, 10)}`, command);
    find("grid-shown").replaceChildren(large, facts, command);
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("keydown", (event) => {
    const to = { ArrowRight: opened + 1, ArrowLeft: opened - 1 }[event.key];
    if (to !== undefined && tiles[to]) { event.preventDefault(); open(to); }
  });
  dialog.addEventListener("close", () => focus(opened));
  find("grid-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  runs.forEach((run, r) => [form.run, form.beside].forEach((select) => option(select, r, `${run.title}, ${run.name}`)));
  [...new Set(runs.flatMap((run) => run.classes))].forEach((name) => option(form.class, name, name));
  if (runs.length < 2) section.querySelectorAll(".several").forEach((element) => { element.hidden = true; });
  else form.beside.value = "1";
  find("grid-form").addEventListener("input", draw);
  find("grid-form").addEventListener("submit", (event) => event.preventDefault());
  section.hidden = false;
  draw();
})();
