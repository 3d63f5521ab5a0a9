"use strict";
(() => {
  const MISSING = -32768;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const digits = (value) => {
    if (!Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const text = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3);
    return text.includes("e") ? text : text.replace("-", "−");
  };
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const draw = (tag, attributes = {}) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  // ── maps over pictures ─────────────────────────────────────────────────────────────────────
  class Overlays {
    constructor(figure) {
      this.figure = figure;
      this.about = JSON.parse(figure.dataset.overlays);
      this.values = new Int16Array(bytes(figure.dataset.values).buffer);
      this.colours = bytes(figure.dataset.colours);
      this.inputs = [...figure.querySelectorAll(".axis input, .axis select")];
      this.sliders = this.inputs.map((input) => input.type === "range");
      this.readout = figure.querySelector(".readout output");
      this.hint = this.readout.textContent;
      this.profiles = this.readout.parentElement.insertAdjacentElement(
        "afterend", make("div", { class: "profiles" }));
      this.views = [...figure.querySelectorAll(".view .stage")].map((s, i) => this.view(s, i));
      this.pointed = null;
      for (const input of this.inputs) input.addEventListener("input", () => this.update());
      this.opacity = figure.querySelector(".opacity");
      this.opacity.addEventListener("input", () => this.fade());
      this.own = figure.querySelector(".own");
      this.own.addEventListener("change", () => this.update());
      figure.querySelector(".colour").addEventListener("change", (event) =>
        figure.classList.toggle("in-colour", event.target.checked));
      this.inputs.forEach((input, i) => this.sliders[i] && input.max >= 5 && this.player(input));
      this.fade();
      this.update();
    }

    view(stage, number) {
      const about = this.about.views[number];
      const image = stage.querySelector("img");
      const canvas = make("canvas", { width: about.cols, height: about.rows, "aria-hidden": true });
      const cell = make("div", { class: "cell", hidden: "" });
      const [tall, wide] = about.reach;
      canvas.style.width = `${100 * wide}%`;
      canvas.style.height = `${100 * tall}%`;
      cell.style.width = `${(100 * wide) / about.cols}%`;
      cell.style.height = `${(100 * tall) / about.rows}%`;
      stage.append(canvas, cell);
      stage.classList.add("live");
      const view = { about, stage, image, canvas, cell, pictures: image.dataset.pictures.split(" ") };
      const at = (event) => {
        const box = stage.getBoundingClientRect();
        const row = Math.floor(((event.clientY - box.top) / box.height / tall) * about.rows);
        const col = Math.floor(((event.clientX - box.left) / box.width / wide) * about.cols);
        this.point(view, row, col);
      };
      stage.addEventListener("pointermove", at);
      stage.addEventListener("pointerdown", at);
      stage.addEventListener("focus", () => this.pointed?.view === view || this.point(view, 0, 0));
      stage.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
        if (event.key === "Escape") return this.point(null);
        if (!(event.key in step)) return;
        event.preventDefault();
        const from = this.pointed?.view === view ? this.pointed : { row: 0, col: 0 };
        this.point(view, from.row + step[event.key][0], from.col + step[event.key][1]);
      });
      return view;
    }

    player(input) {
      const button = make("button", { type: "button", class: "play", "aria-label": "play" }, "▶");
      let timer = null;
      const stop = () => {
        clearInterval(timer);
        timer = null;
        button.textContent = "▶";
        button.setAttribute("aria-label", "play");
      };
      button.addEventListener("click", () => {
        if (timer !== null) return stop();
        button.textContent = "❚❚";
        button.setAttribute("aria-label", "pause");
        timer = setInterval(() => {
          input.value = Number(input.value) === Number(input.max) ? 0 : Number(input.value) + 1;
          this.update();
        }, 400);
      });
      input.addEventListener("pointerdown", stop);
      input.before(button);
    }

    get chosen() {
      return this.inputs.map((input) => Number(input.value));
    }

    /* Where a part's values begin for one choice on every axis; axes of length 1 do not count. */
    start(part, chosen, size) {
      const index = part.shape.reduce((sum, n, i) => sum * n + (n === 1 ? 0 : chosen[i]), 0);
      return part.offset + index * size;
    }

    at(position) {
      const whole = this.values[position];
      return whole === MISSING ? NaN : (whole / 32767) * this.about.peak;
    }

    map(view, chosen) {
      const size = view.about.rows * view.about.cols;
      const start = this.start(view.about, chosen, size);
      return Array.from({ length: size }, (_, i) => this.at(start + i));
    }

    colour(value, limit) {
      if (!Number.isFinite(value)) return [0, 0, 0, 0];
      const share = Math.min(1, Math.max(this.about.signed ? -1 : 0, value / limit));
      const level = Math.sign(share) * Math.sqrt(Math.abs(share));
      const index = Math.floor(this.about.signed ? (level + 1) * 127.5 + 0.5 : level * 255 + 0.5);
      const opaque = Math.floor(255 * Math.abs(level) ** 1.5 + 0.5);
      return [...this.colours.slice(3 * index, 3 * index + 3), opaque];
    }

    update() {
      const chosen = this.chosen;
      this.inputs.forEach((input, i) => {
        if (!this.sliders[i]) return;
        input.nextElementSibling.textContent = this.about.labels[i][chosen[i]];
        input.setAttribute("aria-valuetext", this.about.labels[i][chosen[i]]);
      });
      const maps = this.views.map((view) => this.map(view, chosen));
      const finite = maps.flat().filter(Number.isFinite).map(Math.abs);
      const limit = (this.own.checked && Math.max(...finite)) || this.about.limit;
      this.views.forEach((view, i) => {
        const along = view.about.along.reduce(
          (sum, axis) => sum * this.about.lengths[axis] + chosen[axis], 0);
        const picture = view.pictures[along];
        if (view.shown !== picture) view.image.src = view.shown = picture;
        const pixels = maps[i].flatMap((value) => this.colour(value, limit));
        const data = new ImageData(Uint8ClampedArray.from(pixels), view.about.cols);
        view.canvas.getContext("2d").putImageData(data, 0, 0);
      });
      const clipped = this.about.clipped && limit === this.about.limit;
      const above = [0, limit / 4, limit];
      const ticks = this.about.signed ? [-limit, -limit / 4, ...above] : above;
      this.figure.querySelectorAll(".ticks span").forEach((tick, i) => {
        const beyond = clipped && Math.abs(ticks[i]) === limit;
        tick.textContent = (beyond ? (ticks[i] < 0 ? "≤ " : "≥ ") : "") + digits(ticks[i]);
      });
      if (this.about.bars) this.bars(chosen, limit);
      this.say();
    }

    bars(chosen, limit) {
      const { bars, signed } = this.about;
      const all = Array.from(this.values.slice(bars.offset), (_, i) => this.at(bars.offset + i));
      const longest = Math.max(limit, ...all.filter(Number.isFinite).map(Math.abs));
      const start = this.start(bars, chosen, bars.names.length);
      this.figure.querySelectorAll(".bars tr").forEach((row, i) => {
        const value = this.at(start + i);
        const share = (Number.isFinite(value) ? value : 0) / longest;
        const width = Math.abs(share) * (signed ? 50 : 100);
        const rect = row.querySelector("rect");
        rect.setAttribute("width", width);
        rect.setAttribute("x", signed ? (share < 0 ? 50 - width : 50) : 0);
        const [r, g, b] = this.colour(Math.sign(value) * 0.75, 1);
        rect.setAttribute("fill", `rgb(${r} ${g} ${b})`);
        row.querySelector(".number").textContent = digits(value);
      });
    }

    point(view, row, col) {
      for (const { cell } of this.views) cell.hidden = true;
      this.pointed = null;
      if (view) {
        const { rows, cols, reach } = view.about;
        row = Math.min(rows - 1, Math.max(0, row));
        col = Math.min(cols - 1, Math.max(0, col));
        this.pointed = { view, row, col };
        view.cell.style.top = `${(100 * reach[0] * row) / rows}%`;
        view.cell.style.left = `${(100 * reach[1] * col) / cols}%`;
        view.cell.hidden = false;
      }
      this.say();
    }

    say() {
      this.profiles.replaceChildren();
      if (!this.pointed) {
        this.readout.textContent = this.hint;
        return;
      }
      const { view, row, col } = this.pointed;
      const { name, first, rows, cols } = view.about;
      const cell = row * cols + col;
      const value = (chosen) => this.at(this.start(view.about, chosen, rows * cols) + cell);
      const parts = [`${name}[${row},${col}]`];
      if (first !== null) parts.push(`token ${first + cell}`);
      parts.push(`${digits(value(this.chosen))} ${this.about.unit}`.trim());
      this.readout.textContent = parts.join(" · ");
      this.about.labels.forEach((labels, axis) => {
        if (!this.sliders[axis] || view.about.shape[axis] < 3) return;
        const along = labels.map((_, i) => value(this.chosen.with(axis, i)));
        this.profile(axis, labels, along);
      });
    }

    /* How the pointed token's value goes along one slider. */
    profile(axis, labels, along) {
      const finite = along.filter(Number.isFinite);
      const low = Math.min(0, ...finite), high = Math.max(0, ...finite, low + 1e-12);
      const x = (i) => 2 + (116 * i) / (along.length - 1);
      const y = (value) => 26 - (24 * (value - low)) / (high - low);
      const name = this.inputs[axis].closest(".axis").querySelector(".name").textContent;
      const chart = draw("svg", { viewBox: "0 0 120 28", role: "img",
        "aria-label": `${name}: ${along.map(digits).join(", ")}` });
      chart.append(draw("line", { x1: 2, x2: 118, y1: y(0), y2: y(0), class: "zero" }));
      const points = along.map((value, i) => [x(i), y(value)]).filter((p) => p.every(Number.isFinite));
      chart.append(draw("polyline", { points: points.map((p) => p.join(",")).join(" ") }));
      const now = this.chosen[axis];
      if (Number.isFinite(along[now]))
        chart.append(draw("circle", { cx: x(now), cy: y(along[now]), r: 2.5 }));
      const box = make("div", { class: "profile" });
      box.append(make("span", {}, `along ${name}`), chart,
        make("span", { class: "range" }, `${digits(Math.min(...finite))}…${digits(Math.max(...finite))}`));
      this.profiles.append(box);
    }

    fade() {
      for (const { canvas } of this.views) canvas.style.opacity = this.opacity.value / 100;
    }
  }

  // ── tables ─────────────────────────────────────────────────────────────────────────────────
  const collator = new Intl.Collator("en", { numeric: true });
  const NUMBER = /^([<>≤≥]=?)?\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?=$|[\s%°(…±/×])/i;
  const isMissing = (text) => ["", "-", "–", "—", "nan", "none"].includes(text.toLowerCase());
  const quantity = (text) => {
    const found = NUMBER.exec(text.replaceAll("−", "-").replace(/(\d),(?=\d{3})/g, "$1"));
    if (!found) return NaN;
    const value = Number(found[2]);
    const side = { "<": -1, "≤": 0, ">": 1, "≥": 0 }[found[1]?.[0]] ?? 0;
    return value + side * Math.abs(value) * 1e-9;
  };

  const sortable = (table) => {
    const bodies = [...table.tBodies].map((body) => ({
      body, rows: [...body.rows].filter((row) => !row.classList.contains("heading")) }));
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const text = (row) => row.cells[column].textContent.trim();
      const filled = bodies.flatMap(({ rows }) => rows.map(text)).filter((t) => !isMissing(t));
      const numeric = filled.length > 0 && filled.every((t) => !Number.isNaN(quantity(t)));
      const turns = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const turn = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", turn);
        const sign = turn === "descending" ? -1 : 1;
        for (const { body, rows } of bodies) {
          const sorted = turn === "none" ? rows : rows.toSorted((a, b) => {
            const [left, right] = [text(a), text(b)];
            if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right);
            return sign * (numeric ? quantity(left) - quantity(right) : collator.compare(left, right));
          });
          body.append(...sorted);
        }
      });
    });
  };

  // ── commands ───────────────────────────────────────────────────────────────────────────────
  const copyable = (command) => {
    const code = command.querySelector("code");
    const button = make("button", { type: "button", class: "copy" }, "copy");
    const select = () => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      return document.execCommand("copy");
    };
    button.addEventListener("click", async () => {
      const done = navigator.clipboard
        ? await navigator.clipboard.writeText(code.textContent).then(() => true, select)
        : select();
      button.textContent = done ? "copied" : "press Ctrl+C";
      setTimeout(() => (button.textContent = "copy"), 2000);
    });
    code.after(button);
  };

  document.querySelectorAll("[data-overlays]").forEach((figure) => new Overlays(figure));
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".command").forEach(copyable);
  addEventListener("beforeprint", () =>
    document.querySelectorAll("details").forEach((details) => (details.open = true)));
})();
