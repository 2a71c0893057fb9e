"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};
const grouped = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const readData = (name) => {
  const block = byId(name + "-data");
  return block ? JSON.parse(block.textContent) : null;
};

// ---- tables: sort by a heading, filter by a field ------------------------------------------

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function makeSortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const keys = rows.map((row) => [...row.cells].map((cell) =>
    cell.classList.contains("number")
      ? (cell.dataset.v === undefined ? null : Number(cell.dataset.v)) : cell.textContent));
  const order = rows.map((_, i) => i);
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      const numeric = heading.classList.contains("number");
      // numbers: the largest first, which is what one looks for
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const next = now === first ? other : first;
      headings.forEach((h) => h.setAttribute("aria-sort", h === heading ? next : "none"));
      const sign = next === "ascending" ? 1 : -1;
      order.sort((a, b) => {
        const x = keys[a][column], y = keys[b][column];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return (numeric ? sign * (x - y) : sign * collator.compare(x, y)) || a - b;
      });
      body.append(...order.map((i) => rows[i]));
    });
  });
  if (rows.length < 6) return;
  const tools = make("div", undefined, "tools");
  const label = make("label", "Filter ");
  const field = make("input");
  field.type = "search";
  field.placeholder = "part of a name or value";
  label.append(field);
  const said = make("span", grouped(rows.length) + " rows", "remark");
  said.setAttribute("role", "status");
  tools.append(label, said);
  table.parentElement.before(tools);
  const texts = rows.map((row) => row.textContent.toLocaleLowerCase());
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLocaleLowerCase();
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !texts[i].includes(wanted);
      shown += row.hidden ? 0 : 1;
    });
    said.textContent = wanted
      ? grouped(shown) + " of " + grouped(rows.length) + " rows" : grouped(rows.length) + " rows";
  });
}
document.querySelectorAll("table.sortable").forEach(makeSortable);

// ---- numbers that come in few bytes: see encode.py -----------------------------------------

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

function wholeNumbers(text) {
  const bytes = bytesOf(text);
  let n = 0;
  for (let i = 0; i < bytes.length; i++) n += bytes[i] < 128 ? 1 : 0;
  const out = new Float64Array(n);
  for (let i = 0, at = 0; at < n; at++) {
    let value = 0, scale = 1, byte;
    do {
      byte = bytes[i++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    out[at] = value;
  }
  return out;
}

function readObjects(coded) {
  if (!coded || coded.rings === undefined) return null;
  const rings = wholeNumbers(coded.rings), sizes = wholeNumbers(coded.sizes);
  const steps = wholeNumbers(coded.xy);
  const n = coded.n, points = steps.length / 2;
  const x = new Float64Array(points), y = new Float64Array(points);
  let px = 0, py = 0;
  const signed = (v) => (v % 2 ? -(v + 1) / 2 : v / 2);
  for (let i = 0; i < points; i++) {
    px += signed(steps[2 * i]);
    py += signed(steps[2 * i + 1]);
    x[i] = px * coded.step;
    y[i] = py * coded.step;
  }
  const firstRing = new Uint32Array(n + 1), firstPoint = new Uint32Array(sizes.length + 1);
  for (let i = 0; i < n; i++) firstRing[i + 1] = firstRing[i] + rings[i];
  for (let i = 0; i < sizes.length; i++) firstPoint[i + 1] = firstPoint[i] + sizes[i];
  const box = new Float64Array(4 * n);
  for (let i = 0; i < n; i++) {
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
    for (let p = firstPoint[firstRing[i]], end = firstPoint[firstRing[i + 1]]; p < end; p++) {
      if (x[p] < x0) x0 = x[p];
      if (x[p] > x1) x1 = x[p];
      if (y[p] < y0) y0 = y[p];
      if (y[p] > y1) y1 = y[p];
    }
    box.set([x0, y0, x1, y1], 4 * i);
  }
  return { n, x, y, firstRing, firstPoint, box, step: coded.step,
    kind: wholeNumbers(coded.kind), score: wholeNumbers(coded.score),
    area: wholeNumbers(coded.area), parts: wholeNumbers(coded.parts) };
}

// A grid of cells that names the objects whose middle lies in each.
function makeIndex(objects, width, height) {
  const n = objects.n, box = objects.box;
  const side = Math.max(Math.sqrt((width * height) / Math.max(n / 12, 1)), 1e-6);
  const columns = Math.min(Math.max(1, Math.ceil(width / side)), 2000);
  const rows = Math.min(Math.max(1, Math.ceil(height / side)), 2000);
  const cell = Math.max(width / columns, height / rows);
  const at = (v, most) => Math.min(Math.max(Math.floor(v / cell), 0), most - 1);
  const starts = new Uint32Array(columns * rows + 1), cells = new Uint32Array(n);
  const large = [];
  let reach = 0;
  for (let i = 0; i < n; i++) {
    const w = box[4 * i + 2] - box[4 * i], h = box[4 * i + 3] - box[4 * i + 1];
    if (Math.max(w, h) > 4 * cell) {
      large.push(i);
      cells[i] = 0xffffffff;
      continue;
    }
    reach = Math.max(reach, w / 2, h / 2);
    cells[i] = at((box[4 * i + 1] + box[4 * i + 3]) / 2, rows) * columns
      + at((box[4 * i] + box[4 * i + 2]) / 2, columns);
    starts[cells[i] + 1]++;
  }
  for (let c = 0; c < columns * rows; c++) starts[c + 1] += starts[c];
  const next = starts.slice(), order = new Uint32Array(n - large.length);
  for (let i = 0; i < n; i++) if (cells[i] !== 0xffffffff) order[next[cells[i]]++] = i;
  return (x0, y0, x1, y1, take) => {
    for (const i of large) {
      if (box[4 * i] <= x1 && box[4 * i + 2] >= x0 && box[4 * i + 1] <= y1 && box[4 * i + 3] >= y0) take(i);
    }
    const c0 = at(x0 - reach, columns), c1 = at(x1 + reach, columns);
    for (let r = at(y0 - reach, rows), r1 = at(y1 + reach, rows); r <= r1; r++) {
      for (let k = starts[r * columns + c0], end = starts[r * columns + c1 + 1]; k < end; k++) {
        const i = order[k];
        if (box[4 * i] <= x1 && box[4 * i + 2] >= x0 && box[4 * i + 1] <= y1 && box[4 * i + 3] >= y0) take(i);
      }
    }
  };
}

// ---- the map -------------------------------------------------------------------------------

const data = readData("map");
if (data && byId("map")) startMap(data);

function startMap(data) {
  const element = byId("map"), canvas = byId("map-canvas"), picked = byId("map-picked");
  const context = canvas.getContext("2d");
  const [width, height] = data.size;
  const objects = readObjects(data.objects);
  const query = objects ? makeIndex(objects, width, height) : null;
  const regions = data.regions;
  const layers = { images: true, regions: true, objects: true, problems: true };
  const view = { x: width / 2, y: height / 2, scale: 1 };
  const TOO_MANY = 30000, POINT_PX = 2.5;
  let chosen = { region: -1, object: -1 };
  let colourBy = byId("map-colour") ? byId("map-colour").value : "none";
  let css = readColours(), ratio = 1, shownWidth = 0, shownHeight = 0, waiting = false, moved = false;

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { map: read("--map"), ink: read("--ink"), card: read("--card"), bad: read("--bad"), warn: read("--warn"), focus: read("--focus") };
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { css = readColours(); draw(); });

  // -- colours of regions
  const ramp = data.ramp.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const rampAt = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), i = Math.min(Math.floor(at), ramp.length - 2);
    return ramp[i].map((v, k) => Math.round(v + (ramp[i + 1][k] - v) * (at - i)));
  };
  let low = 0, high = 1;
  function setRange() {
    const values = regions.map((r) => r[colourBy]).filter((v) => v !== null && v !== undefined);
    low = values.length ? Math.min(...values) : 0;
    high = values.length ? Math.max(...values) : 1;
    const box = byId("map-ramp");
    if (!box) return;
    box.hidden = colourBy === "none" || !values.length;
    byId("map-ramp-title").textContent = colourBy === "count" ? "objects in the region" : "objects per km²";
    const digits = high - low < 5 && high < 100 ? 1 : 0;
    byId("map-ramp-low").textContent = grouped(low, digits);
    byId("map-ramp-high").textContent = grouped(high, digits);
  }
  const regionColour = (region) => {
    const value = region[colourBy];
    if (value === null || value === undefined) return null;
    return rampAt(high > low ? (value - low) / (high - low) : 0.6);
  };

  // -- places
  const toX = (x) => (x - view.x) * view.scale + shownWidth / 2;
  const toY = (y) => (y - view.y) * view.scale + shownHeight / 2;
  const fromX = (px) => (px - shownWidth / 2) / view.scale + view.x;
  const fromY = (py) => (py - shownHeight / 2) / view.scale + view.y;
  const fit = (x0, y0, x1, y1, margin = 1.04) => {
    view.x = (x0 + x1) / 2;
    view.y = (y0 + y1) / 2;
    view.scale = Math.min(shownWidth / Math.max((x1 - x0) * margin, 1e-3), shownHeight / Math.max((y1 - y0) * margin, 1e-3));
    limit();
  };
  const fitted = () => Math.min(shownWidth / width, shownHeight / height);
  function limit() {
    view.scale = Math.min(Math.max(view.scale, fitted() / 3), Math.max(60, fitted()));
    view.x = Math.min(Math.max(view.x, 0), width);
    view.y = Math.min(Math.max(view.y, 0), height);
  }
  function zoom(factor, px = shownWidth / 2, py = shownHeight / 2) {
    const x = fromX(px), y = fromY(py);
    view.scale *= factor;
    limit();
    view.x = x - (px - shownWidth / 2) / view.scale;
    view.y = y - (py - shownHeight / 2) / view.scale;
    limit();
    moved = true;
    draw();
  }
  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y -= dy / view.scale;
    limit();
    moved = true;
    draw();
  }
  const home = () => { fit(0, 0, width, height); moved = false; draw(); };

  // -- drawing
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }
  function resize() {
    const old = shownWidth;
    shownWidth = element.clientWidth;
    shownHeight = element.clientHeight;
    if (!shownWidth || !shownHeight) return;
    ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(shownWidth * ratio);
    canvas.height = Math.round(shownHeight * ratio);
    if (!moved || !old) fit(0, 0, width, height);
    // at once: an emptied canvas must not be seen, nor printed
    paint();
  }
  function paint() {
    const begun = performance.now();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = css.map;
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (layers.images) data.images.forEach(paintImage);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (layers.regions) paintRegions();
    const drawn = layers.objects ? paintObjects() : 0;
    if (layers.regions) paintBorders();
    if (layers.problems) data.problems.forEach(paintProblem);
    paintChosen();
    if (layers.regions) paintLabels();
    paintScale();
    element.dataset.view = [view.x, view.y, view.scale].map((v) => v.toPrecision(9)).join(" ");
    element.dataset.drawn = drawn;
    element.dataset.ms = (performance.now() - begun).toFixed(1);
  }

  // -- imagery
  data.images.forEach((image) => {
    image.loaded = image.levels.map((level) => new Array(level.tiles.length));
  });
  function tileOf(image, level, i) {
    const jpeg = image.levels[level].tiles[i];
    if (!jpeg) return null;
    let tile = image.loaded[level][i];
    if (!tile) {
      tile = image.loaded[level][i] = new Image();
      tile.onload = draw;
      tile.src = "data:image/jpeg;base64," + jpeg;
    }
    return tile.complete && tile.naturalWidth ? tile : null;
  }
  function paintImage(image) {
    const [a, b, c, d, e, f] = image.place;
    const k = view.scale * ratio;
    const m = [a * k, d * k, b * k, e * k, (c - view.x) * k + canvas.width / 2, (f - view.y) * k + canvas.height / 2];
    const det = m[0] * m[3] - m[1] * m[2];
    if (!det) return;
    // the window in px of the finest level
    const corners = [[0, 0], [canvas.width, 0], [0, canvas.height], [canvas.width, canvas.height]].map(([px, py]) =>
      [(m[3] * (px - m[4]) - m[2] * (py - m[5])) / det, (m[0] * (py - m[5]) - m[1] * (px - m[4])) / det]);
    const u0 = Math.max(0, Math.min(...corners.map((p) => p[0]))), u1 = Math.min(image.size[0], Math.max(...corners.map((p) => p[0])));
    const v0 = Math.max(0, Math.min(...corners.map((p) => p[1]))), v1 = Math.min(image.size[1], Math.max(...corners.map((p) => p[1])));
    if (u0 >= u1 || v0 >= v1) return;
    const perPx = 1 / Math.sqrt(Math.abs(det));
    let wanted = 0;
    while (wanted < image.levels.length - 1 && image.levels[wanted + 1].scale <= perPx * 1.2) wanted++;
    context.save();
    context.setTransform(...m);
    if (image.clip) {
      const path = new Path2D();
      image.clip.forEach((ring) => trace(path, ring, (v) => v, (v) => v));
      context.clip(path, "evenodd");
    }
    context.imageSmoothingEnabled = true;
    const straight = !m[1] && !m[2];
    const last = image.levels.length - 1;
    // what is loaded of coarser levels shows until the finer is there
    for (let level = last; level >= wanted; level--) {
      if (level !== last && level !== wanted && level !== wanted + 1) continue;
      const { scale, columns, rows } = image.levels[level], side = 512 * scale;
      for (let row = Math.floor(v0 / side); row < rows && row * side < v1; row++) {
        for (let column = Math.floor(u0 / side); column < columns && column * side < u1; column++) {
          const tile = tileOf(image, level, row * columns + column);
          if (!tile) continue;
          const x = column * side, y = row * side;
          const w = tile.naturalWidth * scale, h = tile.naturalHeight * scale;
          if (straight) {
            // edges on whole pixels: no seams
            const at = (v, s, o) => (Math.round(v * s + o) - o) / s;
            const x0 = at(x, m[0], m[4]), y0 = at(y, m[3], m[5]);
            context.drawImage(tile, x0, y0, at(x + w, m[0], m[4]) - x0, at(y + h, m[3], m[5]) - y0);
          } else {
            context.drawImage(tile, x, y, w + perPx, h + perPx);
          }
        }
      }
    }
    context.restore();
  }

  // -- regions
  function trace(path, ring, mapX, mapY) {
    for (let i = 0; i < ring.length; i += 2) {
      if (i) path.lineTo(mapX(ring[i]), mapY(ring[i + 1]));
      else path.moveTo(mapX(ring[0]), mapY(ring[1]));
    }
    path.closePath();
  }
  const boxOf = (rings) => {
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
    for (const ring of rings) for (let i = 0; i < ring.length; i += 2) {
      x0 = Math.min(x0, ring[i]); x1 = Math.max(x1, ring[i]);
      y0 = Math.min(y0, ring[i + 1]); y1 = Math.max(y1, ring[i + 1]);
    }
    return [x0, y0, x1, y1];
  };
  regions.forEach((region) => { region.box = boxOf(region.rings); });
  const seen = (box) => box[0] < fromX(shownWidth) && box[2] > fromX(0) && box[1] < fromY(shownHeight) && box[3] > fromY(0);
  const pathOf = (rings) => {
    const path = new Path2D();
    rings.forEach((ring) => trace(path, ring, toX, toY));
    return path;
  };
  function paintRegions() {
    if (colourBy === "none") return;
    // colours fade as one comes nearer: then one looks at the objects
    const near = Math.min(Math.max((view.scale / fitted() - 1.6) / 5, 0), 1);
    const alpha = (layers.images && data.images.length ? 0.5 : 0.85) * (1 - near * 0.85);
    for (const region of regions) {
      const colour = seen(region.box) && regionColour(region);
      if (!colour) continue;
      context.fillStyle = `rgb(${colour.join(" ")} / ${alpha})`;
      context.fill(pathOf(region.rings), "evenodd");
    }
  }
  function paintBorders() {
    for (const [line, colour] of [[3.5, "rgb(0 0 0 / .45)"], [1.5, "#fff"]]) {
      context.lineWidth = line;
      context.strokeStyle = colour;
      for (const region of regions) if (seen(region.box)) context.stroke(pathOf(region.rings));
    }
  }
  function paintLabels() {
    const taken = [];
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    const order = regions.map((_, i) => i).sort((a, b) => (b === chosen.region) - (a === chosen.region) || (regions[b].count || 0) - (regions[a].count || 0));
    for (const i of order) {
      const region = regions[i];
      if (!region.label || !seen(region.box)) continue;
      const wide = (region.box[2] - region.box[0]) * view.scale;
      const name = region.name.length > 24 ? region.name.slice(0, 23) + "…" : region.name;
      const count = region.count === null ? "–" : grouped(region.count, Number.isInteger(region.count) ? 0 : 1);
      const x = toX(region.label[0]), y = toY(region.label[1]);
      context.font = "600 12px system-ui, sans-serif";
      const half = Math.max(context.measureText(name).width, 30) / 2 + 4;
      if (wide < half * 1.4) continue;
      if (taken.some((t) => Math.abs(t[0] - x) < t[2] + half && Math.abs(t[1] - y) < 38)) continue;
      taken.push([x, y, half]);
      context.strokeStyle = "rgb(0 0 0 / .75)";
      context.fillStyle = "#fff";
      context.lineWidth = 3.5;
      context.strokeText(name, x, y - 11);
      context.fillText(name, x, y - 11);
      context.font = "700 18px system-ui, sans-serif";
      context.lineWidth = 4;
      context.strokeText(count, x, y + 7);
      context.fillText(count, x, y + 7);
    }
  }

  // -- objects
  const colours = data.kinds.map((kind) => kind.colour);
  function paintObjects() {
    if (!objects) return paintGrid(data.objects && data.objects.grid);
    const x0 = fromX(0), x1 = fromX(shownWidth), y0 = fromY(0), y1 = fromY(shownHeight);
    const inView = [];
    query(x0, y0, x1, y1, (i) => inView.push(i));
    if (inView.length > TOO_MANY) return paintDensity(inView);
    const box = objects.box, small = data.kinds.map(() => []), full = data.kinds.map(() => []);
    for (const i of inView) {
      const size = Math.max(box[4 * i + 2] - box[4 * i], box[4 * i + 3] - box[4 * i + 1]) * view.scale;
      (size < POINT_PX ? small : full)[objects.kind[i]].push(i);
    }
    data.kinds.forEach((_, kind) => {
      context.fillStyle = colours[kind];
      for (const i of small[kind]) {
        context.fillRect(toX(box[4 * i]), toY(box[4 * i + 1]), Math.max((box[4 * i + 2] - box[4 * i]) * view.scale, 1.2), Math.max((box[4 * i + 3] - box[4 * i + 1]) * view.scale, 1.2));
      }
      paintOutlines(full[kind], colours[kind]);
    });
    return inView.length;
  }
  function paintOutlines(rows, colour) {
    context.lineWidth = Math.min(Math.max(view.scale * 0.35, 0.9), 2.2);
    context.lineJoin = "round";
    context.strokeStyle = colour;
    context.fillStyle = colour + "38";
    // few at a time: one path of all is slow to fill
    for (let first = 0; first < rows.length; first += 64) {
      context.beginPath();
      for (let k = first; k < Math.min(first + 64, rows.length); k++) addOutline(rows[k]);
      context.fill("evenodd");
      context.stroke();
    }
  }
  function addOutline(i) {
    const { x, y, firstRing, firstPoint } = objects;
    // points nearer than a pixel to the one before add nothing
    const least = 0.9 / view.scale;
    for (let ring = firstRing[i]; ring < firstRing[i + 1]; ring++) {
      let p = firstPoint[ring], lastX = x[p], lastY = y[p];
      context.moveTo(toX(lastX), toY(lastY));
      for (p++; p < firstPoint[ring + 1]; p++) {
        if (Math.abs(x[p] - lastX) < least && Math.abs(y[p] - lastY) < least) continue;
        lastX = x[p];
        lastY = y[p];
        context.lineTo(toX(lastX), toY(lastY));
      }
      context.closePath();
    }
  }
  const heat = document.createElement("canvas");
  function paintHeat(counts, columns, rows, x, y, w, h) {
    let most = 1;
    for (const n of counts) if (n > most) most = n;
    heat.width = columns;
    heat.height = rows;
    const pixels = new ImageData(columns, rows), heatContext = heat.getContext("2d");
    for (let i = 0; i < counts.length; i++) {
      if (!counts[i]) continue;
      const share = Math.sqrt(counts[i] / most);
      pixels.data.set([255, Math.round(215 - 175 * share), Math.round(60 - 30 * share), Math.round(70 + 165 * share)], 4 * i);
    }
    heatContext.putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(heat, x, y, w, h);
    context.imageSmoothingEnabled = true;
  }
  function paintDensity(inView) {
    // cells stand still on the ground while one moves
    const cell = 2 ** Math.ceil(Math.log2(7 / view.scale)), box = objects.box;
    const c0 = Math.floor(fromX(0) / cell), r0 = Math.floor(fromY(0) / cell);
    const columns = Math.ceil(fromX(shownWidth) / cell) - c0 + 1, rows = Math.ceil(fromY(shownHeight) / cell) - r0 + 1;
    const counts = new Uint32Array(columns * rows);
    for (const i of inView) {
      const c = Math.floor((box[4 * i] + box[4 * i + 2]) / 2 / cell) - c0, r = Math.floor((box[4 * i + 1] + box[4 * i + 3]) / 2 / cell) - r0;
      if (c >= 0 && r >= 0 && c < columns && r < rows) counts[r * columns + c]++;
    }
    paintHeat(counts, columns, rows, toX(c0 * cell), toY(r0 * cell), columns * cell * view.scale, rows * cell * view.scale);
    return inView.length;
  }
  function paintGrid(grid) {
    if (!grid) return 0;
    if (typeof grid.counts === "string") grid.counts = wholeNumbers(grid.counts);
    paintHeat(grid.counts, grid.columns, grid.rows, toX(0), toY(0), grid.columns * grid.cell * view.scale, grid.rows * grid.cell * view.scale);
    return data.objects.n;
  }

  // -- problems, what is chosen, scale
  data.problems.forEach((problem) => { problem.box = boxOf(problem.rings); });
  function paintProblem(problem) {
    if (!seen(problem.box)) return;
    const path = pathOf(problem.rings), bad = problem.kind === "failed";
    if (bad) {
      context.fillStyle = "rgb(200 30 30 / .35)";
      context.fill(path, "evenodd");
    }
    context.lineWidth = bad ? 2.5 : 1.8;
    context.setLineDash(bad ? [] : [6, 4]);
    context.strokeStyle = bad ? "#ff5a4d" : "#ffd23f";
    context.stroke(path);
    context.setLineDash([]);
  }
  function paintChosen() {
    const region = regions[chosen.region];
    if (region && layers.regions) {
      const path = pathOf(region.rings);
      for (const [line, colour] of [[7, "rgb(0 0 0 / .5)"], [4, "#fff"], [2, "#0b6b5d"]]) {
        context.lineWidth = line;
        context.strokeStyle = colour;
        context.stroke(path);
      }
    }
    if (chosen.object >= 0 && objects) {
      for (const [line, colour] of [[6, "rgb(0 0 0 / .6)"], [3, "#fff"]]) {
        context.lineWidth = line;
        context.strokeStyle = colour;
        context.beginPath();
        addOutline(chosen.object);
        context.stroke();
      }
    }
  }
  function paintScale() {
    const most = 130 / view.scale, power = 10 ** Math.floor(Math.log10(most));
    const metres = [5, 2, 1].map((k) => k * power).find((v) => v <= most) || power;
    const box = byId("map-scale");
    box.firstElementChild.style.width = metres * view.scale + "px";
    box.lastElementChild.textContent = metres >= 1000 ? grouped(metres / 1000) + " km" : (metres < 1 ? metres.toPrecision(1) : grouped(metres)) + " m";
  }

  // -- choosing
  const inRing = (ring, x, y) => {
    let inside = false;
    for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) {
      if ((ring[i + 1] > y) !== (ring[j + 1] > y) && x < ((ring[j] - ring[i]) * (y - ring[i + 1])) / (ring[j + 1] - ring[i + 1]) + ring[i]) inside = !inside;
    }
    return inside;
  };
  const inRings = (rings, x, y) => rings.reduce((inside, ring) => inside !== inRing(ring, x, y), false);
  function ringsOf(i) {
    const out = [];
    for (let ring = objects.firstRing[i]; ring < objects.firstRing[i + 1]; ring++) {
      const flat = [];
      for (let p = objects.firstPoint[ring]; p < objects.firstPoint[ring + 1]; p++) flat.push(objects.x[p], objects.y[p]);
      out.push(flat);
    }
    return out;
  }
  function objectAt(x, y) {
    if (!objects || !layers.objects) return -1;
    const slack = 3 / view.scale, boxes = objects.box;
    let best = -1, least = Infinity;
    query(x - slack, y - slack, x + slack, y + slack, (i) => {
      const size = (boxes[4 * i + 2] - boxes[4 * i]) * (boxes[4 * i + 3] - boxes[4 * i + 1]);
      const tiny = (boxes[4 * i + 2] - boxes[4 * i]) * view.scale < 6;
      if (size < least && (tiny || inRings(ringsOf(i), x, y))) { best = i; least = size; }
    });
    return best;
  }
  function pick(x, y) {
    const tooMany = objects && Number(element.dataset.drawn) > TOO_MANY;
    chosen = {
      object: tooMany ? -1 : objectAt(x, y),
      region: layers.regions ? regions.findIndex((r) => inRings(r.rings, x, y)) : -1,
    };
    tell(data.problems.find((p) => layers.problems && inRings(p.rings, x, y)));
    draw();
  }
  const pairs = (items) => {
    const list = make("dl");
    for (const [name, value] of items) list.append(make("dt", name), make("dd", value));
    return list;
  };
  const table = byId("regions-table");
  const rowOf = (i) => table && table.querySelector(`button[data-place="${i}"]`)?.closest("tr");
  function tell(problem) {
    picked.replaceChildren();
    if (chosen.object >= 0) {
      const i = chosen.object, box = make("div");
      const kind = data.kinds[objects.kind[i]];
      box.append(make("h3", kind ? kind.name : "object"));
      const items = [["object_id", grouped(i + 1).replaceAll(",", "")]];
      if (data.objects.score) items.push(["score", (objects.score[i] / 1000).toFixed(3)]);
      if (objects.area[i]) items.push(["area", grouped(objects.area[i] / 10, 1) + " m²"]);
      if (objects.parts[i] > 1) items.push(["joined from", objects.parts[i] + " parts"]);
      box.append(pairs(items));
      picked.append(box);
    }
    const region = regions[chosen.region];
    if (region) {
      const box = make("div");
      box.append(make("h3", region.name));
      const big = make("p", region.count === null ? "–" : grouped(region.count, Number.isInteger(region.count) ? 0 : 1), "big");
      big.append(make("small", " objects"));
      box.append(big);
      const row = rowOf(chosen.region);
      if (row) {
        const names = [...table.tHead.rows[0].cells].map((cell) => [...cell.querySelector("button").childNodes].map((n) => n.textContent.trim()).join(" ").trim());
        box.append(pairs([...row.cells].map((cell, k) => [names[k], cell.textContent]).filter((_, k) => k > 0)));
      }
      picked.append(box);
    }
    if (problem) {
      const box = make("div");
      box.append(make("h3", problem.kind === "failed" ? "Left out" : "Full tile"), make("p", problem.text));
      picked.append(box);
    }
    if (!picked.childNodes.length) picked.append(make("p", "Nothing here.", "hint"));
    document.querySelectorAll("tr.selected").forEach((row) => row.classList.remove("selected"));
    rowOf(chosen.region)?.classList.add("selected");
    document.querySelectorAll(".ranking button").forEach((b) => b.setAttribute("aria-pressed", Number(b.dataset.place) === chosen.region));
  }
  function goToRegion(i) {
    const region = regions[i];
    if (!region || !region.rings.length) return;
    chosen = { region: i, object: -1 };
    fit(...region.box, 1.5);
    moved = true;
    tell();
    draw();
  }
  document.querySelectorAll("button.place").forEach((button) => button.addEventListener("click", () => {
    goToRegion(Number(button.dataset.place));
    if (button.closest("table")) element.scrollIntoView({ block: "center" });
  }));
  document.querySelectorAll("button[data-object]").forEach((button) => button.addEventListener("click", () => {
    const [x, y, size] = button.dataset.at.split(" ").map(Number), i = Number(button.dataset.object) - 1;
    fit(x - size * 2, y - size * 2, x + size * 2, y + size * 2);
    moved = true;
    chosen = { object: objects && i < objects.n ? i : -1, region: regions.findIndex((r) => inRings(r.rings, x, y)) };
    tell();
    draw();
    element.scrollIntoView({ block: "center" });
    element.focus({ preventScroll: true });
  }));

  // -- mouse, finger, keyboard
  const pointers = new Map();
  let travelled = 0, spread = 0;
  const local = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, local(event));
    travelled = pointers.size > 1 ? Infinity : 0;
    spread = 0;
  });
  element.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = local(event);
    pointers.set(event.pointerId, now);
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pointers.size === 1) {
      if (travelled > 4) pan(now[0] - before[0], now[1] - before[1]);
      return;
    }
    const [p, q] = [...pointers.values()];
    const apart = Math.hypot(p[0] - q[0], p[1] - q[1]);
    pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    if (spread) zoom(apart / spread, (p[0] + q[0]) / 2, (p[1] + q[1]) / 2);
    spread = apart;
  });
  const up = (event) => {
    const known = pointers.delete(event.pointerId);
    spread = 0;
    if (known && event.type === "pointerup" && travelled <= 4 && !pointers.size) {
      const [px, py] = local(event);
      pick(fromX(px), fromY(py));
    }
  };
  element.addEventListener("pointerup", up);
  element.addEventListener("pointercancel", up);
  element.addEventListener("dblclick", (event) => zoom(2, ...local(event)));
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) / 400), ...local(event));
  }, { passive: false });
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 80, next = (by) => {
      const n = regions.length;
      if (n) goToRegion((((chosen.region < 0 && by < 0 ? 0 : chosen.region) + by) % n + n) % n);
    };
    const actions = {
      ArrowLeft: () => pan(step, 0), ArrowRight: () => pan(-step, 0), ArrowUp: () => pan(0, step), ArrowDown: () => pan(0, -step),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": home, Home: home,
      Enter: () => pick(view.x, view.y), n: () => next(1), p: () => next(-1),
    };
    const action = actions[event.key] || actions[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
  byId("map-in").addEventListener("click", () => zoom(1.6));
  byId("map-out").addEventListener("click", () => zoom(1 / 1.6));
  byId("map-home").addEventListener("click", home);
  document.querySelectorAll("input[data-layer]").forEach((box) => {
    layers[box.dataset.layer] = box.checked;
    box.addEventListener("change", () => { layers[box.dataset.layer] = box.checked; draw(); });
  });
  byId("map-colour")?.addEventListener("change", (event) => { colourBy = event.target.value; setRange(); draw(); });
  byId("map-go")?.addEventListener("change", (event) => {
    const place = data.homes[Number(event.target.value)];
    if (event.target.value === "" || !place) return home();
    fit(...place.box);
    moved = true;
    draw();
  });

  setRange();
  new ResizeObserver(() => { if (!matchMedia("print").matches) resize(); }).observe(element);
  resize();
}
})();
