// Sorts, filters and copies the tables of the page, and keeps what was chosen in its address.
// Without this script every row is shown, in the order of the spreadsheet.
"use strict";
const form = document.querySelector("form");
const fields = [...form.elements].filter((field) => field.name);
const collator = new Intl.Collator("en", { numeric: true });
const views = [...document.querySelectorAll("section:has(table)")].map(viewOf);
let place = ""; // the heading that the address leads to

// A section and its table: rows by the setting that they stand under, the columns' heads and names, how it is sorted
function viewOf(section) {
  const table = section.querySelector("table"), heads = [...[...table.tHead.rows].at(-1).cells];
  const groups = [{ heading: null, rows: [] }];
  for (const row of table.tBodies[0].rows) {
    if (row.className === "setting") groups.push({ heading: row, rows: [] });
    else groups.at(-1).rows.push(row);
  }
  const above = table.tHead.rows.length === 1 ? heads.map(() => "")
    : [...table.tHead.rows[0].cells].flatMap((cell) => Array(cell.colSpan).fill(cell.textContent));
  const titles = heads.map((head) => head.textContent), numeric = heads.map((head) => head.matches(".number"));
  const names = titles.map((title, column) => // "Published Avg ± std": no two columns share a name
    [above[column], title === "± std" ? titles[column - 1] : "", title].filter(Boolean).join(" "));
  const columns = document.createElement("colgroup");
  heads.forEach(() => columns.append(document.createElement("col")));
  table.prepend(columns); // one is hidden while the rows shown leave it empty
  return { section, table, groups, heads, above, titles, names, numeric, columns: [...columns.children],
    anchor: section.querySelector("h2").id, sorted: { name: "", down: false } };
}

const text = (cell) => cell.firstChild?.data?.trim() ?? ""; // without the small letters
const small = (row) => row.cells[0].querySelector("small")?.textContent ?? "";
const valueOf = (field) => field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;

// Sorting: within each setting, since numbers of two settings cannot be compared; empty cells stand last
function sort(view, name = "", down = false) {
  const column = view.names.indexOf(name);
  view.sorted = { name: view.names[column] ?? "", down };
  for (const head of view.heads) head.ariaSort = null;
  if (column >= 0) view.heads[column].ariaSort = down ? "descending" : "ascending";
  view.table.classList.toggle("sorted", column >= 0);
  const order = document.createDocumentFragment();
  for (const { heading, rows } of view.groups) {
    if (heading) order.append(heading);
    for (const row of column < 0 ? rows : inOrder(rows, column, view.numeric[column], down)) order.append(row);
  }
  view.table.tBodies[0].append(order);
}

function inOrder(rows, column, isNumber, down) {
  const key = (row) => text(row.cells[column]), number = (row) => Number(key(row).replaceAll(",", ""));
  const compare = isNumber ? (one, other) => number(one) - number(other)
    : (one, other) => collator.compare(key(one), key(other));
  const filled = rows.filter(key).sort((one, other) => down ? compare(other, one) : compare(one, other));
  return [...filled, ...rows.filter((row) => !key(row))];
}

// A column's first order has the largest number or the first name on top; then the other way round, then none
function sortNext(view, column) {
  const name = view.names[column], first = view.numeric[column], { sorted } = view;
  if (sorted.name === name && sorted.down !== first) sort(view);
  else sort(view, name, sorted.name === name ? !first : first);
  write();
}

function filter() {
  const choice = Object.fromEntries(fields.map((field) => [field.name, valueOf(field)]));
  const parts = choice.method.toLowerCase().split(",").map((part) => part.trim()).filter(Boolean);
  let all = 0, left = 0;
  for (const view of views) {
    const total = view.groups.reduce((sum, { rows }) => sum + rows.length, 0), shown = [];
    for (const { heading, rows } of view.groups) {
      rows.forEach((row) => { row.hidden = !fits(row, heading?.textContent ?? "", choice, parts); });
      const fitting = rows.filter((row) => !row.hidden);
      if (heading) heading.hidden = !fitting.length;
      shown.push(...fitting);
    }
    view.section.hidden = document.querySelector(`nav a[href="#${view.anchor}"]`).hidden = !shown.length;
    view.columns.forEach((column, index) => {
      column.className = shown.length < total && !shown.some((row) => text(row.cells[index])) ? "empty" : "";
    });
    all += total;
    left += shown.length;
  }
  form.querySelector("output").textContent = `${left.toLocaleString("en")} of ${all.toLocaleString("en")} rows`;
}

function fits(row, setting, { paper, backbone, measured }, parts) {
  if ((paper && row.dataset.paper !== paper) || (backbone && row.dataset.backbone !== backbone)) return false;
  if (measured && !("measured" in row.dataset)) return false;
  const words = parts.length ? `${setting}\n${text(row.cells[0])}\n${small(row)}`.toLowerCase() : "";
  return parts.every((part) => words.includes(part));
}

// The address: #mtil, or #at=mtil&paper=ZSCL&sort.mtil=Published+Last,down
function write() {
  const chosen = new URLSearchParams();
  for (const field of fields) if (valueOf(field)) chosen.set(field.name, valueOf(field));
  for (const { anchor, sorted } of views) {
    if (sorted.name) chosen.set(`sort.${anchor}`, `${sorted.name},${sorted.down ? "down" : "up"}`);
  }
  setAddress(place && chosen.size ? `at=${place}&${chosen}` : place || String(chosen));
}

function setAddress(hash) {
  history.replaceState(null, "", location.href.split("#")[0] + (hash && `#${hash}`));
}

function read() {
  const hash = location.hash.slice(1), chosen = new URLSearchParams(hash.includes("=") ? hash : `at=${hash}`);
  place = chosen.get("at") ?? "";
  for (const field of fields) {
    field[field.type === "checkbox" ? "checked" : "value"] = chosen.get(field.name) ?? "";
    if (field.selectedIndex === -1) field.value = ""; // a name that is not on this page
  }
  for (const view of views) {
    const [, name, way] = chosen.get(`sort.${view.anchor}`)?.match(/^(.*),(up|down)$/) ?? [];
    if (name || view.sorted.name) sort(view, name, way === "down");
  }
  filter();
  if (chosen.size > 1) document.getElementById(place)?.scrollIntoView(); // #mtil alone is the browser's to follow
}

// Copying what is shown, in the order shown: the columns' titles, and lines of cells or of a setting alone
function shownOf(view) {
  const rows = [...view.table.tBodies[0].rows].filter((row) => !row.hidden);
  const beside = rows.filter(small).map(apart);
  const added = ["Backbone", "Details"].filter((_, index) => beside.some((parts) => parts[index]));
  const widened = (values, parts = added) => {
    const [first, ...others] = values.filter((_, column) => !view.columns[column].className);
    return [first, ...parts.slice(0, added.length), ...others];
  };
  return {
    lines: rows.map((row) => row.className === "setting" ? { setting: row.textContent.trim() }
      : { cells: widened([...row.cells].map(text), apart(row)) }),
    names: widened(view.names), titles: widened(view.titles), above: widened(view.above, ["", ""]),
    numeric: widened(view.numeric, [false, false]),
    notes: [...view.section.querySelectorAll("ol.notes li")].map((note) => note.textContent.trim()),
  };
}

// What stands beside the method in small letters: its backbone, and what else tells the row from its like
function apart(row) {
  return [row.dataset.backbone, small(row).split("; ").filter((part) => part !== row.dataset.backbone).join("; ")];
}

function asCsv(view) {
  const { lines, names, numeric, notes } = shownOf(view), bySetting = lines.some((line) => line.setting);
  const table = [bySetting ? ["Setting", ...names] : names];
  let setting = "";
  for (const line of lines) {
    setting = line.setting ?? setting;
    const cells = line.cells?.map((cell, column) => {
      if (numeric[column]) return cell.replaceAll(",", "");
      const words = cell.replace(/^\[(\d+)\]$/, (mark, number) => notes[number - 1] ?? mark);
      return /^[=+\-@\t\r]/.test(words) ? `'${words}` : words; // a spreadsheet would take it for a formula
    });
    if (cells) table.push(bySetting ? [setting, ...cells] : cells);
  }
  const quoted = (cell) => /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  return table.map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("");
}

const TEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$",
  "⁻": "$^-$", "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "]": "{]}" };
const tex = (words) => words.replace(/[\\{}$&#%_~^±⁻<>|[\]]/g, (letter) => TEX[letter] ?? `\\${letter}`);

function asLatex(view) {
  const { lines, titles, above, numeric, notes } = shownOf(view);
  const written = lines.map(({ setting, cells }) => setting
    ? `\\midrule\n\\multicolumn{${titles.length}}{l}{${tex(setting)}}`
    : cells.map((cell, column) => numeric[column] ? cell.replace(/^-/, "$-$") : tex(cell)).join(" & "));
  const marks = new Set(lines.flatMap(({ cells }) => cells ?? []));
  return [
    "% needs \\usepackage{booktabs}",
    `\\begin{tabular}{${numeric.map((isNumber) => isNumber ? "r" : "l").join("")}}`,
    "\\toprule",
    ...(above.some(Boolean) ? groupsOf(above) : []),
    `${titles.map(tex).join(" & ")} \\\\`,
    ...(lines[0]?.setting ? [] : ["\\midrule"]), // a setting brings its own
    ...written.map((line) => `${line} \\\\`),
    "\\bottomrule",
    "\\end{tabular}",
    ...notes.map((note, index) => `[${index + 1}] ${note}`).filter((note) => marks.has(note.split(" ", 1)[0]))
      .map((note) => `% ${note}`),
  ].join("\n") + "\n";
}

// The line of headings that several columns share, and the rules below them
function groupsOf(above) {
  const heads = [], rules = [];
  for (let start = 0, end; start < above.length; start = end) {
    for (end = start + 1; above[start] && above[end] === above[start];) end++;
    heads.push(above[start] && `\\multicolumn{${end - start}}{c}{${tex(above[start])}}`);
    if (above[start]) rules.push(`\\cmidrule(lr){${start + 1}-${end}}`);
  }
  return [`${heads.join(" & ")} \\\\`, rules.join(" ")];
}

async function copy(words) {
  try {
    await navigator.clipboard.writeText(words);
  } catch { // not allowed, or a page from a server without TLS
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = words;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function addButton(parent, words, act) {
  const button = parent.appendChild(document.createElement("button"));
  button.textContent = words;
  button.addEventListener("click", () => act(button));
}

for (const view of views) {
  view.heads.forEach((head, column) => {
    head.textContent = "";
    addButton(head, view.titles[column], () => sortNext(view, column));
  });
  const tools = document.createElement("p");
  tools.className = "tools";
  for (const [name, written] of [["Copy as LaTeX", asLatex], ["Copy as CSV", asCsv]]) {
    addButton(tools, name, async (button) => {
      await copy(written(view));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = name; }, 1500);
    });
  }
  view.table.parentElement.before(tools);
}

form.hidden = false;
form.addEventListener("input", () => { filter(); write(); });
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  setAddress(place);
  read();
});
window.addEventListener("hashchange", () => {
  if (location.hash.includes("=")) return read();
  place = location.hash.slice(1); // a link to a table keeps what was chosen
  write();
});
read();
