"use strict";
// The question browser. Whatever a model wrote is only ever set as text (textContent), never as markup.
(() => {
  const PAGE = 50, HEAD = 160;
  const [TASK, ID, QUESTION, GOLD, GROUPS, ANSWERS, CHOICES] = [0, 1, 2, 3, 4, 5, 6]; // of a row
  const [TEXT, TOKENS, CUT, STRICT, LENIENT, ANSWER, REASON] = [0, 1, 2, 3, 4, 5, 6]; // of an answer
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const [search, task, group, model, show] = ["search", "task", "group", "model", "show"].map(at);
  let page = 0, found = [];

  function make(tag, look, text) {
    const made = document.createElement(tag);
    if (look) made.className = look;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const picked = () => (model ? Number(model.value) : 0);
  const share = (row, m) => row[ANSWERS][m].filter((a) => a[LENIENT] === 1).length / row[ANSWERS][m].length;
  const some = (test) => (row, m) => row[ANSWERS][m].some(test);
  const tests = {
    all: () => true,
    right: (row, m) => share(row, m) === 1,
    partly: (row, m) => share(row, m) > 0 && share(row, m) < 1,
    wrong: (row, m) => share(row, m) === 0,
    changed: (row, m) => share(row, m) !== share(row, 0),
    won: (row, m) => share(row, m) > share(row, 0),
    lost: (row, m) => share(row, m) < share(row, 0),
    truncated: some((a) => a[CUT]),
    form: some((a) => a[STRICT] !== a[LENIENT]),
    silent: some((a) => a[ANSWER] === ""),
  };

  const texts = new Map(); // what is searched in, made when first asked for
  function textOf(row) {
    if (!texts.has(row)) {
      const said = row[ANSWERS].flat().flatMap((a) => [a[TEXT], a[ANSWER], a[REASON]]);
      texts.set(row, [row[ID], row[QUESTION], row[GOLD], ...Object.values(row[GROUPS]), ...said].join("\n").toLowerCase());
    }
    return texts.get(row);
  }

  function select() {
    const word = search.value.trim().toLowerCase();
    const [column, ...name] = group.value.split("=");
    const near = data.rows.filter((row) =>
      (task.value === "" || row[TASK] === Number(task.value)) &&
      (column === "" || String(row[GROUPS][column]) === name.join("=")) &&
      (word === "" || textOf(row).includes(word)));
    const m = picked();
    for (const option of show.options) {
      const count = near.filter((row) => tests[option.value](row, m)).length;
      option.dataset.word ??= option.textContent;
      option.textContent = `${option.dataset.word} (${count.toLocaleString("en")})`;
    }
    found = near.filter((row) => tests[show.value](row, m));
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    at("count").textContent = `${found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} questions`;
    at("page").textContent = `page ${page + 1} of ${pages}`;
    at("back").disabled = page === 0;
    at("next").disabled = page + 1 >= pages;
    at("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(entry));
  }

  function mark(row, m) {
    const value = share(row, m);
    const word = value === 1 ? "right" : value === 0 ? "wrong" : "partly";
    const k = row[ANSWERS][m].length;
    const told = k > 1 ? `${Math.round(value * k)}/${k}` : { right: "✓", wrong: "✗" }[word];
    const made = make("span", `verdict ${word}`, told);
    made.title = `${data.models[m]}: ${k > 1 ? `${told} right` : word}`;
    return made;
  }

  function entry(row) {
    const box = make("details", "entry"), head = make("summary");
    const marks = make("span", "marks");
    marks.append(...data.models.map((_, m) => mark(row, m)));
    const line = make("span", "line", row[QUESTION].slice(0, HEAD).replace(/\s+/g, " "));
    line.dir = "auto";
    head.append(marks, make("span", "id", row[ID]), line);
    box.append(head);
    box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(body(row)); });
    return box;
  }

  function body(row) {
    const made = make("div", "body"), question = make("pre", "question", row[QUESTION]);
    question.dir = "auto";
    const groups = Object.entries(row[GROUPS]).map(([column, name]) => `${column} ${name}`);
    const facts = make("p", "gold", [data.tasks[row[TASK]], ...groups].join(" · "));
    if (row[GOLD] !== "") facts.prepend(make("b", "", `gold ${row[GOLD]}`), " · ");
    const pair = make("div", "pair");
    row[ANSWERS].forEach((answers, m) => {
      const side = make("div");
      if (data.models.length > 1) side.append(make("h4", "", data.models[m]));
      if (row[CHOICES]) side.append(choices(row[CHOICES][m], answers[0]));
      else side.append(...answers.map(answer));
      pair.append(side);
    });
    made.append(question, facts, pair);
    return made;
  }

  const verdict = (v) => (v === 1 ? "right" : v === 0 ? "wrong" : "no verdict");

  function answer(a) {
    const made = make("article", "answer"), facts = make("p", "facts"), text = make("pre", "", a[TEXT]);
    text.dir = "auto";
    const told = a[STRICT] === a[LENIENT] ? [verdict(a[LENIENT])] : [`lenient: ${verdict(a[LENIENT])}`, `strict: ${verdict(a[STRICT])}`];
    if (a[ANSWER] !== "" && a[ANSWER].length < 80) told.push(`answer ${a[ANSWER]}`);
    told.push(`${a[TOKENS].toLocaleString("en")} tokens`, ...(a[CUT] ? ["truncated"] : []));
    facts.append(...told.map((t) => make("span", t === "right" || t === "lenient: right" ? "good" : "", t)));
    made.append(facts, text, make("p", "reason", a[REASON]));
    return made;
  }

  function choices(logs, a) {
    const made = make("div", "answer"), facts = make("p", "facts");
    facts.append(make("span", a[LENIENT] === 1 ? "good" : "", `chose ${a[TEXT]}: ${verdict(a[LENIENT])}`));
    logs.forEach((v, i) => facts.append(make("span", "", `${"ABCDEFGHIJ"[i]} ${v.toFixed(3)}`)));
    made.append(facts, make("p", "reason", "log-probability of each letter, in nats"));
    return made;
  }

  function groupsOf() {
    const columns = new Map(), kept = group.value;
    for (const row of task.value === "" && data.tasks.length > 1 ? [] : data.rows) {
      if (task.value !== "" && row[TASK] !== Number(task.value)) continue;
      for (const [column, name] of Object.entries(row[GROUPS])) {
        if (!columns.has(column)) columns.set(column, new Set());
        columns.get(column).add(String(name));
      }
    }
    const all = make("option", "", columns.size || data.tasks.length === 1 ? "all" : "choose a task");
    all.value = "";
    group.replaceChildren(all);
    for (const [column, names] of [...columns].sort()) {
      const part = make("optgroup");
      part.label = column;
      for (const name of [...names].sort((a, b) => a.localeCompare(b, "en", { numeric: true }))) {
        const option = make("option", "", name);
        option.value = `${column}=${name}`;
        part.append(option);
      }
      group.append(part);
    }
    group.disabled = columns.size === 0;
    group.value = kept;
    if (group.selectedIndex < 0) group.value = "";
  }

  // A link #questions?task=0&model=1&show=won sets the controls.
  function follow() {
    const [place, query] = location.hash.slice(1).split("?");
    if (place !== "questions" || query === undefined) return;
    const wanted = new URLSearchParams(query), set = (control, key, other) => {
      if (!control) return;
      control.value = wanted.get(key) ?? other;
      if (control.selectedIndex < 0) control.value = other;
    };
    search.value = wanted.get("search") ?? "";
    set(task, "task", data.tasks.length > 1 ? "" : "0");
    groupsOf();
    set(group, "group", "");
    set(model, "model", String(data.models.length - 1));
    set(show, "show", "all");
    select();
    at("questions").scrollIntoView();
  }

  const every = make("option", "", "all");
  every.value = "";
  task.append(...(data.tasks.length > 1 ? [every] : []));
  data.tasks.forEach((name, i) => {
    const option = make("option", "", name);
    option.value = String(i);
    task.append(option);
  });
  if (model) model.value = String(data.models.length - 1);
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(select, 120); });
  task.addEventListener("change", () => { groupsOf(); select(); });
  for (const control of [group, model, show]) control?.addEventListener("change", select);
  at("back").addEventListener("click", () => { page -= 1; draw(); });
  at("next").addEventListener("click", () => { page += 1; draw(); at("questions").scrollIntoView(); });
  addEventListener("click", (event) => { if (event.target.closest?.('a[href^="#questions?"]')) setTimeout(follow); });
  groupsOf();
  select();
  follow();
})();
