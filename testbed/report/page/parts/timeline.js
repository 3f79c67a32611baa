// The timeline: phases of both hosts, rounds, what the network did, and every request, on one axis that zooms
// from the whole run to a fraction of a millisecond. Requests are dots (when, how long), or bars of their
// connections from the sending to the answer.

const LANE = 26, GUTTER = 86, AXIS = 26, NEAR = 7, MOST_ROWS = 48, FLOW = 56;
const TABLES = {"neighbour": "client0", "forwarding": "relearn", "announcement-seen": "announce"};  // and their colours

class Timeline {
  constructor(root, run) {
    this.run = run;
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    this.status = root.querySelector(".shown");
    this.hidden = new Set();
    this.flows = run.data.flows.map(flow => { const bytes = unpack(flow.bytes); return {...flow, bytes, most: bytes.reduce((a, b) => Math.max(a, b), 1)}; });
    this.rows = new Rows(run.requests);
    this.styles = [...root.querySelectorAll("[data-style]")];
    this.styles.forEach(button => button.addEventListener("click", () => { this.choose(button.dataset.style); this.draw(); }));
    this.choose("dots");
    this.cursor = null;
    this.onPick = () => {};
    this.span = [0, run.data.span];
    this.view = [...this.span];
    this.buildLegend(root.querySelector(".legend"));
    for (const button of root.querySelectorAll("[data-view]")) button.addEventListener("click", () => this.show(button.dataset.view));
    this.listen();
  }

  choose(style) {
    this.style = style;
    this.styles.forEach(one => one.setAttribute("aria-pressed", String(one.dataset.style === style)));
  }

  get move() { return this.run.move; }
  get zero() { const move = this.move; return move ? move.pause ?? move.begin : 0; }

  buildLegend(legend) {
    const {requests} = this.run;
    requests.names.forEach((name, number) => {
      const button = element("button", {type: "button", class: "key", "aria-pressed": "true", style: `--key: var(--client${number % 8})`, onclick: () => {
        const hide = !this.hidden.has(number);
        hide ? this.hidden.add(number) : this.hidden.delete(number);
        button.setAttribute("aria-pressed", String(!hide));
        this.draw();
      }}, name);
      legend.append(button);
    });
  }

  // Named views: the whole run, the migration, the blackout in milliseconds.
  show(name) {
    const move = this.move;
    let view = [...this.span];
    if (move && name !== "run") {
      const blackout = move.pause !== null && move.resume !== null;
      const [begin, end] = name === "blackout" && blackout ? [move.pause, move.resume] : [move.begin, Math.max(move.end, move.announced.at(-1)?.[0] ?? 0)];
      const margin = (end - begin) * (name === "blackout" ? 0.35 : 0.06);
      view = [begin - margin, end + margin];
      if (name === "blackout" && blackout) view[1] = Math.max(view[1], this.served(begin, end) + margin / 2);
    }
    this.choose(name === "blackout" && move?.resume != null && this.rows.count ? "rows" : "dots");
    this.zoomTo(...view);
  }

  // When all who waited through a blackout had been served, but no later than four times its length.
  served(pause, resume) {
    const {begin, end} = this.run.requests;
    let last = resume;
    for (let i = lowerBound(begin, resume) - 1; i >= 0 && begin[i] > pause - 1e6; i--) if (end[i] > pause) last = Math.max(last, end[i]);
    return Math.min(last, pause + 4 * (resume - pause));
  }

  zoomTo(begin, end) {
    const least = 20, whole = this.span[1] - this.span[0];
    const width = Math.min(Math.max(end - begin, least), whole * 1.04);
    const middle = (begin + end) / 2;
    const from = Math.min(Math.max(middle - width / 2, -whole * 0.02), this.span[1] + whole * 0.02 - width);
    this.view = [from, from + width];
    this.draw();
  }

  scale(factor, around = (this.view[0] + this.view[1]) / 2) {
    this.zoomTo(around - (around - this.view[0]) * factor, around + (this.view[1] - around) * factor);
  }

  pan(share) {
    const by = (this.view[1] - this.view[0]) * share;
    this.zoomTo(this.view[0] + by, this.view[1] + by);
  }

  x(us) { return this.left + (us - this.view[0]) / (this.view[1] - this.view[0]) * this.width; }
  us(x) { return this.view[0] + (x - this.left) / this.width * (this.view[1] - this.view[0]); }

  draw() {
    const box = this.canvas.clientWidth || 700;
    this.left = box < 520 ? 52 : GUTTER;
    this.width = box - this.left - 8;
    const lanes = this.lanes();
    let below = AXIS;
    for (const lane of lanes) { lane.top = below; lane.height ??= LANE; below += lane.height; }
    this.plotTop = below + 26;
    this.plotHeight = this.style === "rows" ? Math.max(140, this.rows.count * this.rows.height(box)) : box < 520 ? 220 : 280;
    const context = prepared(this.canvas, box, this.plotTop + this.plotHeight + 30);
    this.hits = [];
    this.drawAxis(context);
    this.drawBlackouts(context);
    context.save();
    context.beginPath();
    context.rect(this.left, 0, this.width, 4000);
    context.clip();
    lanes.forEach(lane => lane.draw(context, lane.top));
    context.restore();
    lanes.forEach(lane => write(context, lane.name, this.left - 8, lane.top + lane.height / 2, {size: 11.5, align: "right", fill: "dim", most: this.left - 10}));
    this.drawRequests(context);
    this.drawCursor(context);
  }

  lanes() {
    // Guests that move at once would lie upon each other: those of the chosen one have lanes, the others one.
    const moved = this.run.data.moves, vm = this.move?.vm ?? null;
    const moves = moved.filter(one => one.vm === vm), rest = moved.filter(one => one.vm !== vm);
    const hosts = this.run.data.topology.hosts;
    const lanes = hosts.map(host => ({name: host, draw: (context, y) => moves.forEach(move => this.drawPhases(context, y, move, host))}));
    lanes.push({name: "rounds", draw: (context, y) => moves.forEach(move => this.drawRounds(context, y, move))});
    const {others: all} = this.run.data, tables = all.filter(one => one.kind in TABLES);
    lanes.push({name: "network", draw: (context, y) => {
      moves.forEach(move => this.drawNetwork(context, y, move, tables.some(one => one.kind === "forwarding")));
    }});
    if (rest.length) lanes.push({name: "other guests", draw: (context, y) => rest.forEach(move => this.drawOther(context, y, move))});
    if (tables.length) lanes.push({name: "tables", draw: (context, y) => this.drawOthers(context, y, tables)});
    const others = all.filter(one => !(one.kind in TABLES) && !["probes-begin", "probes-end"].includes(one.kind));
    if (others.length) lanes.push({name: "events", draw: (context, y) => this.drawOthers(context, y, others)});
    for (const flow of this.flows) lanes.push({name: flow.client, height: FLOW, draw: (context, y) => this.drawFlow(context, y, flow)});
    return lanes;
  }

  // Throughput: from the least to the most of the milliseconds that a pixel stands for, so that a stall shows.
  drawFlow(context, y, flow) {
    const number = this.run.requests.names.indexOf(flow.client), tall = FLOW - 22, base = y + FLOW - 3;
    const fill = number < 0 ? colour("dim") : clientColour(number), place = us => (us - flow.begin) / flow.bucket_us;
    for (let x = this.left; x < this.left + this.width; x++) {
      const from = Math.floor(place(this.us(x))), to = Math.max(Math.floor(place(this.us(x + 1))), from + 1);
      if (to <= 0 || from >= flow.bytes.length) continue;
      const here = flow.bytes.subarray(Math.max(from, 0), to);
      let least = Infinity, most = 0;
      for (const bytes of here) { least = Math.min(least, bytes); most = Math.max(most, bytes); }
      context.fillStyle = faded(fill, 0.4);
      context.fillRect(x, base - tall * most / flow.most, 1, tall * most / flow.most);
      context.fillStyle = fill;
      context.fillRect(x, base - tall * least / flow.most, 1, tall * least / flow.most);
    }
    context.fillStyle = colour("line");
    context.fillRect(this.left, base, this.width, 1);
    write(context, `bulk, up to ${rate(flow.most, flow.bucket_us)}`, this.left + 4, y + 8, {size: 10.5, fill: "dim"});
    this.hits.push({from: this.left, to: this.left + this.width, top: y, bottom: y + FLOW, tip: x => {
      const at = Math.floor(place(this.us(x))), bytes = flow.bytes[at];
      return bytes === undefined ? null : `${flow.client}, connection ${flow.connection}: ${rate(bytes, flow.bucket_us)} in this ${duration(flow.bucket_us)}`;
    }});
  }

  drawAxis(context) {
    const span = this.view[1] - this.view[0], most = Math.max(2, Math.floor(this.width / 90));
    const rough = span / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough);
    const first = Math.ceil((this.view[0] - this.zero) / step) * step;
    for (let at = first; at + this.zero <= this.view[1]; at += step) {
      const x = this.x(at + this.zero);
      context.fillStyle = colour("line");
      context.fillRect(x, AXIS - 4, 1, this.plotTop + this.plotHeight - AXIS + 4);
      const text = span >= 3e6 ? `${+(at / 1e6).toFixed(2)} s` : step >= 1000 ? `${Math.round(at / 1e3)} ms` : step >= 100 ? `${(at / 1e3).toFixed(1)} ms` : step >= 10 ? `${(at / 1e3).toFixed(2)} ms` : `${Math.round(at)} µs`;
      write(context, at > 0 ? `+${text}` : text, x, 12, {size: 11, align: "center", fill: "dim"});
    }
  }

  drawBlackouts(context) {
    for (const move of this.run.data.moves) {
      if (move.pause === null || move.vm !== (this.move?.vm ?? null)) continue;
      const from = this.x(move.pause), to = this.x(move.resume ?? this.span[1]);
      if (to < this.left || from > this.left + this.width) continue;
      const begin = Math.max(from, this.left), end = Math.min(Math.max(to, from + 1.5), this.left + this.width);
      context.fillStyle = colour("blackout");
      context.fillRect(begin, AXIS - 4, Math.max(end - begin, 1.5), this.plotTop + this.plotHeight - AXIS + 4);
      if (to - from > 70) write(context, `blackout ${move.resume === null ? "" : duration(move.resume - move.pause)}`, (begin + end) / 2, this.plotTop - 14, {size: 11.5, align: "center", fill: "pause", weight: 600});
    }
  }

  bar(context, y, begin, end, fill, text, tip, height = LANE - 8) {
    const from = Math.max(this.x(begin), this.left - 2), to = Math.min(Math.max(this.x(end), this.x(begin) + 1.5), this.left + this.width + 2);
    if (to < this.left || from > this.left + this.width) return;
    context.fillStyle = colour(fill);
    context.beginPath();
    context.roundRect(from, y + (LANE - height) / 2, Math.max(to - from - 0.5, 1), height, 2.5);
    context.fill();
    if (text && to - from > 26) write(context, text, (from + to) / 2, y + LANE / 2 + 0.5, {size: 11, align: "center", fill: "on-bar", most: to - from - 6});
    this.hits.push({from, to, top: y, bottom: y + LANE, tip});
  }

  tick(context, y, at, fill, tip) {
    const x = this.x(at);
    if (x < this.left || x > this.left + this.width) return;
    context.fillStyle = colour(fill);
    context.fillRect(x - 1, y + 4, 2, LANE - 8);
    context.beginPath();
    context.arc(x, y + LANE / 2, 3.5, 0, 7);
    context.fill();
    this.hits.push({from: x - 4, to: x + 4, top: y, bottom: y + LANE, tip});
  }

  drawPhases(context, y, move, host) {
    for (const [where, phase, begin, end, error] of move.phases) {
      if (where !== host) continue;
      const until = end ?? this.span[1], how = error ? `: ${error}` : end === null ? ": did not end" : "";
      this.bar(context, y, begin, until, error || end === null ? "bad-bar" : `phase-${phase}`, phase, `${host} ${phase}, ${duration(until - begin)}${how}`);
    }
  }

  drawRounds(context, y, move) {
    for (const round of move.rounds) {
      const what = round.last ? `last pages: ${many(round.pages ?? 0)}` : `round ${round.number}: ${many(round.pages)} pages, ${rate(round.bytes, round.end - round.begin)}, ${many(round.dirty)} dirtied meanwhile`;
      this.bar(context, y, round.begin, round.end, round.last ? "last" : "copied", round.last ? "last" : `${round.number}`, what);
    }
  }

  drawNetwork(context, y, move, told) {
    const cut = this.at(move, "cut"), released = this.at(move, "frames-released") ?? this.at(move, "running-again");
    if (cut !== null && released !== null && move.held !== null) {
      this.bar(context, y, cut, released, "hold", "frames held", `frames held: ${move.held}, released ${move.released}, dropped ${move.dropped}`, 10);
    }
    for (const [at, host] of move.announced) this.tick(context, y, at, "announce", `${host} announced: the guest is here`);
    if (move.relearned !== null && !told) this.tick(context, y, move.relearned, "relearn", "the switch's table now points to the new host");
  }

  drawOther(context, y, move) {
    const route = `${move.vm}: ${move.source} → ${move.target}`;
    this.bar(context, y, move.begin, move.end, "other", move.vm, `${route}, ${duration(move.end - move.begin)}`, 14);
    if (move.pause !== null) this.bar(context, y, move.pause, move.resume ?? move.end, "pause", "", `${route}, blackout ${duration((move.resume ?? move.end) - move.pause)}`, 14);
  }

  at(move, name) {
    const found = move.marks.find(one => one[0] === name);
    return found ? found[2] : null;
  }

  drawOthers(context, y, kinds) {
    for (const {kind, each, columns, count} of kinds) {
      if (each) for (const [at, source, text] of each) this.tick(context, y, at, TABLES[kind] ?? "other", `${source}: ${kind}${text ? `, ${text}` : ""}`);
      else columns.forEach((number, i) => {
        if (number) this.bar(context, y, this.span[1] * i / columns.length, this.span[1] * (i + 1) / columns.length, "other", "", `${kind}: ${many(number)} of ${many(count)} (only counted)`, 6);
      });
    }
  }

  y(ms) {
    const low = Math.log10(this.low), high = Math.log10(this.high);
    return this.plotTop + this.plotHeight - (Math.log10(Math.max(ms, this.low)) - low) / (high - low) * this.plotHeight;
  }

  drawRequests(context) {
    const {requests} = this.run;
    const middle = [this.left + this.width / 2, this.plotTop + this.plotHeight / 2];
    if (!requests.total) return write(context, "no samples of clients", ...middle, {align: "center", fill: "dim"});
    const from = lowerBound(requests.begin, this.view[0] - requests.longest * 1e3), to = lowerBound(requests.begin, this.view[1]);
    this.dots = {from, to};
    this.tellShown(to - from);
    if (this.style === "dots") this.drawScale(context);
    context.save();
    context.beginPath();
    context.rect(this.left, this.plotTop - 4, this.width, this.plotHeight + 8);
    context.clip();
    if (this.style === "dots") { this.drawDensity(context); this.drawDots(context); } else this.drawBars(context);
    context.restore();
    if (this.style === "dots") this.drawFloor(context); else this.rows.label(context, this);
    const told = this.style === "dots" ? "wait of each request, at the time when it was sent" : `requests of each connection, from the sending to the answer${this.rows.left ? ` (the ${MOST_ROWS} connections that waited longest, of ${MOST_ROWS + this.rows.left})` : ""}`;
    return write(context, told, this.left, this.plotTop + this.plotHeight + 18, {size: 11.5, fill: "dim", most: this.width});
  }

  drawScale(context) {
    const {requests} = this.run;
    this.low = Math.max(10 ** Math.floor(Math.log10(requests.shortest)), 0.01);
    this.high = Math.max(requests.longest * 1.5, this.low * 100);
    for (let ms = this.low; ms <= this.high; ms *= 10) {
      context.fillStyle = colour("line");
      context.fillRect(this.left, this.y(ms), this.width, 1);
      const least = ms === this.low && requests.shortest < ms ? "≤ " : "";
      write(context, least + power(ms), this.left - 8, this.y(ms), {size: 11, align: "right", fill: "dim"});
    }
  }

  // A bar as long as the request was under way. Of a steady stream: as long as a delivery was late.
  drawBars(context) {
    const {requests, rows} = {requests: this.run.requests, rows: this.rows}, tall = rows.height(this.canvas.clientWidth);
    for (let i = this.dots.from; i < this.dots.to; i++) {
      const row = rows.of[i];
      if (row < 0 || this.hidden.has(requests.client[i])) continue;
      const [begin, end] = this.extent(i), x = this.x(begin), y = this.plotTop + row * tall;
      context.fillStyle = requests.answered[i] ? clientColour(requests.client[i]) : colour("bad");
      context.fillRect(x, y + tall * 0.2, Math.max(this.x(end) - x - 0.75, 1.25), tall * 0.6);
    }
  }

  extent(i) {
    const {requests} = this.run, end = requests.end[i];
    return requests.isSteady(i) ? [end - requests.wait[i] * 1e3, end] : [requests.begin[i], end];
  }

  drawDensity(context) {
    const {grid} = this.run.requests, width = this.span[1] / grid.columns;
    for (let i = 0; i < grid.count.length; i++) {
      if (this.hidden.has(grid.client[i])) continue;
      const x = this.x(grid.column[i] * width), right = this.x((grid.column[i] + 1) * width);
      if (right < this.left || x > this.left + this.width) continue;
      const low = grid.shortest * 10 ** (grid.row[i] / grid.rowsPerDecade), high = low * 10 ** (1 / grid.rowsPerDecade);
      const top = this.y(high);
      context.fillStyle = faded(clientColour(grid.client[i]), Math.min(0.08 + 0.1 * Math.log2(1 + grid.count[i] / Math.max(right - x, 1)), 0.7));
      context.fillRect(x, top, Math.max(right - x, 1), Math.max(this.y(low) - top, 1));
    }
  }

  drawDots(context) {
    const {requests} = this.run, {begin, end, wait, client, answered} = requests, normally = this.run.data.normally ?? Infinity;
    const {from, to} = this.dots;
    const seen = to - from, bars = seen < 4000, size = seen > 30000 ? 1 : seen > 5000 ? 1.4 : seen > 800 ? 2 : 3;
    for (let i = from; i < to; i++) {
      if (this.hidden.has(client[i])) continue;
      const x = this.x(begin[i]), y = this.y(wait[i]);
      const fill = clientColour(client[i]);
      if (bars && end[i] - begin[i] > 0) {
        const right = this.x(end[i]);
        if (right - x > 4) { context.fillStyle = faded(fill, 0.45); context.fillRect(x, y - 0.75, right - x, 1.5); }
      }
      const late = wait[i] > normally;
      context.fillStyle = seen > 5000 && !late ? faded(fill, 0.65) : fill;
      if (!answered[i]) write(context, "✕", x, y, {size: 13, align: "center", fill: "bad"});
      else if (late && size < 2.5) { context.beginPath(); context.arc(x, y, 2.5, 0, 7); context.fill(); }
      else if (size < 2) context.fillRect(x - size / 2, y - size / 2, size, size);
      else { context.beginPath(); context.arc(x, y, size, 0, 7); context.fill(); }
    }
  }

  tellShown(seen) {
    const {requests} = this.run, counted = requests.grid.requests;
    const rest = counted ? `; ${many(counted)} of ${many(requests.total)} in this run are drawn as density: the longest and the shortest of every moment are dots` : "";
    this.status.textContent = `${many(seen)} requests in view, from ${signed(this.view[0] - this.zero)} to ${signed(this.view[1] - this.zero)}${rest}`;
  }

  drawFloor(context) {
    const normally = this.run.data.normally;
    if (!normally) return;
    const y = this.y(normally);
    context.strokeStyle = colour("dim");
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(this.left, y);
    context.lineTo(this.left + this.width, y);
    context.stroke();
    context.setLineDash([]);
    write(context, `longest without a migration ${duration(normally * 1e3)}`, this.left + 6, y + 10, {size: 11, fill: "dim"});
  }

  drawCursor(context) {
    if (this.cursor === null) return;
    const x = this.x(this.cursor);
    if (x < this.left || x > this.left + this.width) return;
    context.fillStyle = colour("ink");
    context.fillRect(x - 0.75, AXIS - 6, 1.5, this.plotTop + this.plotHeight - AXIS + 6);
  }

  // What lies under a point: a bar or a tick of a lane, else the nearest dot.
  under(x, y) {
    for (let i = this.hits.length - 1; i >= 0; i--) {
      const hit = this.hits[i];
      if (x >= hit.from - 2 && x <= hit.to + 2 && y >= hit.top && y < hit.bottom) return typeof hit.tip === "function" ? hit.tip(x) : hit.tip;
    }
    const best = !this.dots ? null : this.style === "rows" ? this.barUnder(x, y) : this.dotUnder(x, y);
    return best === null ? null : `${this.run.requests.describe(best)}, sent ${signed(this.run.requests.begin[best] - this.zero)}`;
  }

  barUnder(x, y) {
    const row = Math.floor((y - this.plotTop) / this.rows.height(this.canvas.clientWidth));
    for (let i = this.dots.to - 1; i >= this.dots.from; i--) {
      if (this.rows.of[i] !== row) continue;
      const [begin, end] = this.extent(i);
      if (x >= this.x(begin) - 1 && x <= this.x(end) + 1) return i;
    }
    return null;
  }

  dotUnder(x, y) {
    const {requests} = this.run;
    let best = null, nearest = NEAR * NEAR;
    if (y < this.plotTop - NEAR) return null;
    for (let i = this.dots.from; i < this.dots.to; i++) {
      if (this.hidden.has(requests.client[i])) continue;
      const dx = this.x(requests.begin[i]) - x;
      if (dx > NEAR || dx < -NEAR) continue;
      const dy = this.y(requests.wait[i]) - y, distance = dx * dx + dy * dy;
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    return best;
  }

  listen() {
    const {canvas} = this, fingers = new Map();
    let dragged = 0, apart = 0;
    const place = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", event => { fingers.set(event.pointerId, place(event)); dragged = 0; apart = 0; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", event => {
      const [x, y] = place(event), before = fingers.get(event.pointerId);
      if (!before) return this.hint(x, y);
      fingers.set(event.pointerId, [x, y]);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()], wide = Math.abs(a[0] - b[0]);
        if (apart && wide) this.scale(apart / wide, this.us((a[0] + b[0]) / 2));
        apart = wide;
        dragged = 99;
      } else {
        dragged += Math.abs(x - before[0]);
        this.pan((before[0] - x) / this.width);
      }
    });
    const lift = event => {
      const had = fingers.delete(event.pointerId);
      if (had && event.type === "pointerup" && dragged < 4) this.onPick(this.us(place(event)[0]));
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", () => this.hint(-1, -1));
    canvas.addEventListener("dblclick", event => this.scale(0.4, this.us(place(event)[0])));
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && document.activeElement !== canvas) return;
      event.preventDefault();
      this.scale(Math.exp(event.deltaY * 0.0016), this.us(place(event)[0]));
    }, {passive: false});
    const keys = {ArrowLeft: () => this.pan(-0.15), ArrowRight: () => this.pan(0.15), "+": () => this.scale(0.6), "=": () => this.scale(0.6), "-": () => this.scale(1.7), 0: () => this.show("run"), b: () => this.show("blackout"), m: () => this.show("migration")};
    canvas.addEventListener("keydown", event => {
      const act = keys[event.key];
      if (act && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); act(); }
    });
  }

  hint(x, y) {
    const text = x < 0 ? null : this.under(x, y);
    this.tip.hidden = text === null;
    if (text === null) return;
    this.tip.textContent = text;
    const room = this.canvas.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(x + 12, room))}px`;
    this.tip.style.top = `${y + 16}px`;
  }
}
