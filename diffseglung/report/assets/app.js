"use strict";
(() => {
  const root = document.documentElement;
  const by = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  window.addEventListener("error", (event) => { root.dataset.error = event.message; });
  window.addEventListener("unhandledrejection", (event) => { root.dataset.error = String(event.reason); });

  const shared = JSON.parse(by("shared").textContent);
  const svg = (name, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const rgb = (tissue, alpha = 1) => `rgba(${tissue.rgb.join(",")},${alpha})`;

  // The table: sort, filter, walk.

  const table = by("cases");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const filter = by("filter");
  let state = "all";

  const visible = () => [...body.rows].filter((row) => !row.hidden);

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const wanted = state === "all" || row.dataset.state === state;
      row.hidden = !wanted || !words.every((word) => row.dataset.search.includes(word));
    }
    for (const chip of all(".chip[data-words]")) {
      chip.setAttribute("aria-pressed", String(chip.dataset.words === filter.value.trim().toLowerCase()));
    }
    const count = visible().length;
    by("count").textContent = count === rows.length ? "" : `${count} of ${rows.length} shown`;
    by("nothing").hidden = count > 0;
  }

  function sort(header) {
    const column = header.cellIndex;
    const numeric = header.dataset.kind !== "text";
    const other = { ascending: "descending", descending: "ascending" };
    const order = other[header.getAttribute("aria-sort")] || header.dataset.first;
    for (const cell of header.parentNode.cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const names = new Intl.Collator("en", { numeric: true });
    const keyed = rows.map((row) => [row, row.cells[column].dataset.sort]);
    keyed.sort(([, a], [, b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stays last, either way
      return sign * (numeric ? a - b : names.compare(a, b));
    });
    body.append(...keyed.map(([row]) => row));
  }

  all("th[data-kind]", table).forEach((header) => header.querySelector("button").addEventListener("click", () => sort(header)));
  filter.addEventListener("input", show);
  all(".chip[data-state]").forEach((chip, _, chips) => chip.addEventListener("click", () => {
    state = chip.dataset.state;
    for (const each of chips) each.setAttribute("aria-pressed", String(each === chip));
    show();
  }));
  all(".chip[data-words]").forEach((chip) => chip.addEventListener("click", () => {
    filter.value = chip.getAttribute("aria-pressed") === "true" ? "" : chip.dataset.words;
    show();
  }));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !String(getSelection())) open(row);
  });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest("tr");
    if (!step || !row) return;
    const list = visible();
    const next = list[list.indexOf(row) + step];
    if (next) {
      event.preventDefault();
      next.querySelector("button").focus();
    }
  });
  all(".dot[data-case]").forEach((dot) => dot.addEventListener("click", () => open(rowOf(dot.dataset.case))));

  // One case. The address names it (#case=...), so that a link or Back leads to it.

  const dialog = by("case");
  const rowOf = (number) => rows.find((row) => row.dataset.case === number);
  let current = null;

  const open = (row) => { location.hash = "case=" + encodeURIComponent(row.dataset.id); };

  function wanted() {
    if (!location.hash.startsWith("#case=")) return null;
    let id = location.hash.slice(6);
    try { id = decodeURIComponent(id); } catch { /* a hand-made address; taken as it stands */ }
    return rows.find((row) => row.dataset.id === id) || null;
  }

  function follow() {
    const row = wanted();
    if (!row) {
      current = null;
      if (dialog.open) dialog.close();
      return;
    }
    const opened = !dialog.open;
    if (opened) dialog.showModal();
    if (row !== current) fill(row, opened);
  }

  function fill(row, opened) {
    current = row;
    const template = document.querySelector(`template[data-case="${row.dataset.case}"]`);
    const copy = template.content.cloneNode(true);
    by("case-title").textContent = row.dataset.id;
    by("case-state").replaceChildren(copy.firstElementChild);
    by("numbers").replaceChildren(copy);
    const list = visible();
    const at = list.indexOf(row);
    by("previous").disabled = at <= 0;
    by("next").disabled = at < 0 || at === list.length - 1;
    dialog.scrollTop = 0;
    all("input[data-tissue]", dialog).forEach((box) => {
      const value = Number(box.dataset.tissue);
      box.checked = !view.off.has(value);
      box.addEventListener("change", () => {
        if (box.checked) view.off.delete(value); else view.off.add(value);
        draw();
      });
    });
    view.case = null;
    by("viewer").hidden = true;
    by("viewer-missing").hidden = false;
    by("viewer-missing").textContent = "Loading pictures\u2026";
    pictures(row.dataset.case, template.dataset.url).then(async (found) => {
      if (current !== row) return;
      if (!found) {
        by("viewer-missing").textContent = "There are no pictures of this scan.";
        return;
      }
      const planes = await decode(found);
      if (current !== row) return;
      histogram(found);
      by("viewer").hidden = false;
      by("viewer-missing").hidden = true;
      view.case = { planes, mm_per_px: found.mm_per_px };
      choose(planes[view.plane] ? view.plane : Object.keys(planes)[0]);
      if (opened) position.focus({ preventScroll: true });
    }).catch((error) => {
      if (current === row) by("viewer-missing").textContent = `The pictures cannot be shown: ${error.message}`;
    });
  }

  function step(by_) {
    const list = visible();
    const row = list[list.indexOf(current) + by_];
    if (row) open(row);
  }

  by("previous").addEventListener("click", () => step(-1));
  by("next").addEventListener("click", () => step(1));
  by("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const row = current;
    current = null;
    if (location.hash) history.replaceState(null, "", location.pathname + location.search);
    if (row) row.querySelector("button").focus({ preventScroll: false });
  });
  window.addEventListener("hashchange", follow);

  // Pictures: inside the page, or in a script beside it (from disk a page may not fetch).

  const arriving = new Map();
  window[shared.callback] = (found) => arriving.get(document.currentScript)?.(found);

  function pictures(number, url) {
    const held = by(`pictures-${number}`);
    if (held) return Promise.resolve(JSON.parse(held.textContent));
    if (!url) return Promise.resolve(null);
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      arriving.set(script, resolve);
      script.addEventListener("error", () => reject(new Error(`${decodeURI(url)} is not beside this page`)));
      script.addEventListener("load", () => { arriving.delete(script); script.remove(); });
      script.src = url;
      document.head.append(script);
    });
  }

  async function decode(found) {
    const planes = {};
    for (const [name, plane] of Object.entries(found.planes)) {
      const [height, width] = plane.size_px;
      const bytes = Uint8Array.from(atob(plane.labels), (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      const labels = new Uint8Array(await new Response(stream).arrayBuffer());
      const size = height * width;
      const slices = plane.ct.map((source, i) => {
        const image = new Image();
        image.src = "data:image/webp;base64," + source;
        return { image, labels: labels.subarray(i * size, (i + 1) * size), index: plane.slices[i] };
      });
      planes[name] = { height, width, slices, of: plane.of, start: plane.start };
    }
    return planes;
  }

  // The viewer.

  const canvas = by("slice");
  const overlay = document.createElement("canvas");
  const position = by("position");
  const opacity = by("opacity");
  const healthy = shared.tissues[0].value;
  const view = { case: null, plane: "axial", off: new Set([healthy]) };
  const colour = new Map(shared.tissues.map((tissue) => [tissue.value, tissue.rgb]));

  for (const [name, hung] of Object.entries(shared.views)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "chip", textContent: name[0].toUpperCase() + name.slice(1) });
    button.dataset.plane = name;
    button.addEventListener("click", () => choose(name));
    by("planes").append(button);
    hung.name = name;
  }

  function choose(name) {
    const plane = view.case.planes[name];
    view.plane = name;
    for (const button of by("planes").children) button.setAttribute("aria-pressed", String(button.dataset.plane === name));
    by("first").textContent = shared.views[name].first;
    by("last").textContent = shared.views[name].last;
    position.max = plane.slices.length - 1;
    position.value = plane.start;
    profile(plane);
    draw();
  }

  function counts(labels) {
    const found = new Array(colour.size + 1).fill(0);
    for (const value of labels) found[value] += 1;
    return found;
  }

  // Bars over the slider: how much of each slice is diseased, and by what.
  function profile(plane) {
    const chart = by("profile");
    const perSlice = plane.slices.map((slice) => counts(slice.labels));
    const diseased = perSlice.map((n) => n.reduce((sum, value, i) => sum + (i > healthy ? value : 0), 0));
    const top = Math.max(...diseased, 1);
    // Bar i stands over the slider's thumb at i.
    chart.setAttribute("viewBox", `0 0 ${Math.max(plane.slices.length - 1, 1)} 30`);
    chart.replaceChildren(svg("rect", { class: "here", y: 0, width: 0.9, height: 30 }));
    perSlice.forEach((n, i) => {
      let y = 30;
      chart.append(svg("rect", { class: "rest", x: i - 0.35, width: 0.7, y: 29, height: 1 }));
      for (const tissue of shared.tissues.slice(1)) {
        const height = (28 * n[tissue.value]) / top;
        y -= height;
        if (height) chart.append(svg("rect", { class: `f${tissue.value}`, x: i - 0.35, width: 0.7, y, height }));
      }
    });
  }

  function paint(labels, width, height, strength) {
    overlay.width = width;
    overlay.height = height;
    const context = overlay.getContext("2d");
    const image = context.createImageData(width, height);
    const only = by("outlines").checked;
    for (let i = 0; i < labels.length; i += 1) {
      const value = labels[i];
      if (!value || view.off.has(value)) continue;
      const x = i % width;
      const edge = (x > 0 && labels[i - 1] !== value) || (x < width - 1 && labels[i + 1] !== value)
        || (i >= width && labels[i - width] !== value) || (i + width < labels.length && labels[i + width] !== value);
      if (only && !edge) continue;
      image.data.set(colour.get(value), 4 * i);
      image.data[4 * i + 3] = 255 * (edge ? Math.min(1, 1.8 * strength) : strength);
    }
    context.putImageData(image, 0, 0);
  }

  async function draw() {
    if (!view.case) return;
    const plane = view.case.planes[view.plane];
    const at = Number(position.value);
    const slice = plane.slices[at];
    await slice.image.decode();
    if (!view.case || plane !== view.case.planes[view.plane] || at !== Number(position.value)) return;
    const scale = Math.max(2, Math.round(900 / Math.max(plane.width, plane.height)));
    const [width, height] = [plane.width * scale, plane.height * scale];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(slice.image, 0, 0, width, height);
    const strength = Number(opacity.value) / 100;
    paint(slice.labels, plane.width, plane.height, strength);
    context.imageSmoothingEnabled = false;
    context.drawImage(overlay, 0, 0, width, height);
    letters(context, width, height, scale);
    told(plane, slice, at, strength);
  }

  function letters(context, width, height, scale) {
    const hung = shared.views[view.plane];
    const size = Math.round(Math.max(width, height) / 32);
    const pad = size * 0.5;
    Object.assign(context, { font: `600 ${size}px system-ui, sans-serif`, fillStyle: "#fff", strokeStyle: "#000", lineWidth: size / 5, lineJoin: "round" });
    const write = (text, x, y, align, baseline) => {
      Object.assign(context, { textAlign: align, textBaseline: baseline });
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    write(hung.left, pad, height / 2, "left", "middle");
    write(hung.right, width - pad, height / 2, "right", "middle");
    write(hung.top, width / 2, pad, "center", "top");
    write(hung.bottom, width / 2, height - pad, "center", "bottom");
    const bar = (50 / view.case.mm_per_px) * scale;
    const y = height - pad;
    for (const [style, thick] of [["#000", size / 3.2], ["#fff", size / 8]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: thick });
      context.beginPath();
      context.moveTo(width - pad - bar, y);
      context.lineTo(width - pad, y);
      context.stroke();
    }
    Object.assign(context, { strokeStyle: "#000", lineWidth: size / 5, font: `${Math.round(size * 0.75)}px system-ui, sans-serif` });
    write("5 cm", width - pad - bar / 2, y - size * 0.3, "center", "bottom");
  }

  function told(plane, slice, at, strength) {
    const n = counts(slice.labels);
    const lung = n.reduce((sum, value, i) => sum + (i ? value : 0), 0);
    const shares = shared.tissues.slice(1).filter((tissue) => n[tissue.value])
      .map((tissue) => `${tissue.title} ${((100 * n[tissue.value]) / lung).toFixed(0)}%`);
    by("where").textContent = `slice ${slice.index + 1} of ${plane.of}`;
    by("opacity-value").textContent = `${Math.round(100 * strength)}%`;
    const text = `${view.plane} slice ${slice.index + 1} of ${plane.of}: ${shares.join(", ") || "no disease labelled"}`;
    canvas.setAttribute("aria-label", text);
    position.setAttribute("aria-valuetext", text);
    by("profile").querySelector(".here").setAttribute("x", at - 0.45);
  }

  const moveTo = (index) => { position.value = index; draw(); };
  position.addEventListener("input", draw);
  opacity.addEventListener("input", draw);
  by("outlines").addEventListener("change", draw);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    moveTo(Number(position.value) - Math.sign(event.deltaY));
  }, { passive: false });
  by("profile").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    moveTo(Math.round(((event.clientX - box.left - 8) / (box.width - 16)) * Number(position.max)));
  });

  // HU by tissue: a ridge each, scaled to its own peak.

  function histogram(found) {
    const figure = dialog.querySelector(".histogram");
    const present = shared.tissues.filter((tissue) => found.histogram_ml[tissue.key]);
    if (!figure || !present.length) return;
    const [left, width, step, ridge] = [96, 404, 30, 27];
    const height = step * present.length + 26;
    const [low, high] = [found.edges_hu[0], found.edges_hu[found.edges_hu.length - 1]];
    const x = (hu) => left + (width * (hu - low)) / (high - low);
    const label = "Histogram of HU by tissue: " + present.map((tissue) => {
      const values = found.histogram_ml[tissue.key];
      return `${tissue.title} peaks near ${found.edges_hu[values.indexOf(Math.max(...values))]} HU`;
    }).join(", ");
    const chart = svg("svg", { viewBox: `0 0 ${left + width + 14} ${height}`, role: "img", "aria-label": label });
    for (const hu of [-1000, -800, -600, -400, -200, 0, 200]) {
      chart.append(svg("line", { x1: x(hu), x2: x(hu), y1: 0, y2: height - 20 }));
      chart.append(svg("text", { x: x(hu), y: height - 6, "text-anchor": "middle" }, String(hu).replace("-", "\u2212")));
    }
    present.forEach((tissue, i) => {
      const base = step * (i + 1);
      const values = found.histogram_ml[tissue.key];
      const peak = Math.max(...values);
      const points = values.map((value, j) =>
        `${x(found.edges_hu[j]).toFixed(1)},${(base - (ridge * value) / peak).toFixed(1)} ${x(found.edges_hu[j + 1]).toFixed(1)},${(base - (ridge * value) / peak).toFixed(1)}`);
      chart.append(svg("path", { d: `M${x(low)},${base} L${points.join(" ")} L${x(high)},${base}Z`, fill: rgb(tissue) }));
      chart.append(svg("text", { x: left - 10, y: base - 4, "text-anchor": "end" }, tissue.title));
    });
    figure.append(chart);
    figure.hidden = false;
  }

  root.dataset.script = "on";
  show();
  follow();
})();
