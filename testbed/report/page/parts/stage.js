// The replay's picture: clients, switch, hosts, the guest's RAM as a map of pages. Draws one moment.

const BEAT_SECONDS = 3, RIPPLE_SECONDS = 1.1;

class Stage {
  constructor(canvas, run) {
    this.canvas = canvas;
    this.run = run;
    this.picture = document.createElement("canvas");
  }

  // at: microsecond of the run; second: of the replay; still: no decoration that moves.
  draw(film, warp, second, still) {
    const width = this.canvas.clientWidth || 800, narrow = width < 600;
    this.place(width, narrow);
    const context = prepared(this.canvas, width, this.height);
    Object.assign(this, {context, film, warp, second, still, at: warp.at(second), narrow});
    film.pages(this.at);
    this.drawLinks();
    this.drawSwitch();
    this.clients.forEach(one => this.drawClient(one));
    this.hosts.forEach(one => this.drawHost(one));
    this.others.forEach(one => this.drawOther(one));
    this.drawWire();
    if (this.store) this.drawStore();
    if (!still) this.drawRipples();
  }

  place(width, narrow) {
    const {topology, moves} = this.run.data, move = this.run.move;
    const most = narrow ? 3 : 6, gap = 10, shown = topology.clients.slice(0, most * 2);
    const rows = Math.ceil(shown.length / most) || 1, columns = Math.max(Math.ceil(shown.length / rows), 1);
    const tile = {width: (width - gap * (columns - 1) - 2) / columns, height: narrow ? 58 : 62};
    this.more = topology.clients.length - shown.length;
    this.clients = shown.map(([name, on], i) => {
      const inRow = Math.min(columns, shown.length - Math.floor(i / columns) * columns);
      const wide = Math.min(tile.width, 210), left = (width - inRow * wide - (inRow - 1) * gap) / 2;
      return {name, on, x: left + (i % columns) * (wide + gap), y: 1 + Math.floor(i / columns) * (tile.height + gap), width: wide, height: tile.height};
    });
    const top = rows * (tile.height + gap) + (narrow ? 26 : 34);
    this.switch = {x: width / 2 - (narrow ? 75 : 110), y: top, width: narrow ? 150 : 220, height: 40};
    const pair = move ? [move.source, move.target].sort() : topology.hosts.slice(0, 2);
    const others = topology.hosts.filter(host => !pair.includes(host));
    const between = narrow ? 14 : Math.max(130, width * 0.2), host = {width: Math.min((width - between - 2) / 2, 330), y: top + (narrow ? 78 : 84)};
    host.height = host.width * (narrow ? 1.15 : 0.72) + 70;
    const left = (width - 2 * host.width - between) / 2;
    this.hosts = pair.map((name, i) => ({name, ...host, x: left + i * (host.width + between)}));
    let bottom = host.y + host.height + (narrow ? 44 : 14);
    this.wireY = narrow ? host.y + host.height + 22 : host.y + host.height * 0.5;
    this.others = others.map((name, i) => narrow
      ? {name, x: left + i * 84, y: bottom, width: 78, height: 26}
      : {name, x: width - 112 - Math.floor(i / 3) * 118, y: top - 14 + (i % 3) * 31, width: 112, height: 26});
    if (narrow && others.length) bottom += 36;
    this.store = topology.storage ? {x: width / 2 - 90, y: bottom + 14, width: 180, height: 44} : null;
    if (this.store) bottom += 66;
    this.height = bottom + 4;
    this.between = between;
  }

  line(points, fill, thick = 2, dash = null) {
    const {context} = this;
    context.strokeStyle = fill;
    context.lineWidth = thick;
    context.setLineDash(dash ?? []);
    context.beginPath();
    points.forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y));
    context.stroke();
    context.setLineDash([]);
  }

  box(place, fill, edge, {radius = 8, dash = null, thick = 1.5} = {}) {
    const {context} = this;
    context.beginPath();
    context.roundRect(place.x, place.y, place.width, place.height, radius);
    if (fill) { context.fillStyle = fill; context.fill(); }
    if (edge) { context.strokeStyle = edge; context.lineWidth = thick; context.setLineDash(dash ?? []); context.stroke(); context.setLineDash([]); }
  }

  // The way of a client's frames: to the switch, and from there to the host that the switch's table names.
  way(one) {
    const goal = this.hosts.find(host => host.name === (one.on ?? this.film.direction(this.at))) ?? this.hosts[0];
    const foot = [one.x + one.width / 2, one.y + one.height];
    const hub = [this.switch.x + this.switch.width / 2, this.switch.y];
    const door = [goal.x + goal.width / 2, goal.y];
    if (one.on && this.hosts.includes(goal)) return [foot, door];
    return [foot, hub, [hub[0], this.switch.y + this.switch.height], door];
  }

  drawLinks() {
    const base = [this.switch.x + this.switch.width / 2, this.switch.y + this.switch.height];
    for (const host of this.hosts) {
      const here = this.film.direction(this.at) === host.name;
      this.line([base, [host.x + host.width / 2, host.y]], colour(here ? "wire-on" : "line"), here ? 3 : 2);
    }
    this.clients.forEach(one => this.line(this.way(one).slice(0, 2), colour("line"), 2));
  }

  drawSwitch() {
    const {x, y, width, height} = this.switch;
    this.box(this.switch, colour("panel"), colour("edge"));
    write(this.context, "switch", x + width / 2, y + 13, {size: 12, align: "center", weight: 600});
    write(this.context, `guest → ${this.film.direction(this.at)}`, x + width / 2, y + 28, {size: 11, align: "center", fill: "dim"});
    if (this.more > 0) write(this.context, `and ${this.more} more clients`, x + width + 10, y + 20, {size: 11, fill: "dim"});
  }

  drawClient(one) {
    const {context} = this, {requests} = this.run, number = requests.names.indexOf(one.name);
    const waits = number < 0 ? 0 : requests.waiting(number, this.at), normally = (this.run.data.normally ?? Infinity) * 1e3;
    const late = waits > normally;
    this.box(one, colour("panel"), late ? colour("pause") : colour("edge"), {thick: late ? 2 : 1.5});
    context.fillStyle = number < 0 ? colour("dim") : clientColour(number);
    context.beginPath();
    context.arc(one.x + 12, one.y + 13, 4, 0, 7);
    context.fill();
    const label = one.on ? `${one.name} on ${one.on}` : one.name, room = one.width - 30;
    const text = number < 0 ? "no samples" : waits ? `waits ${duration(waits)}` : "answered";
    const used = one.width > 130 ? write(context, text, one.x + one.width - 8, one.y + 13, {size: 11, align: "right", fill: late ? "pause" : "dim", weight: late ? 600 : 400}) : 0;
    write(context, label, one.x + 22, one.y + 13, {size: 12, weight: 600, most: room - used});
    if (number >= 0) this.drawBeats(one, number, waits, late, normally);
  }

  // The requests that were answered in the last seconds of the replay, each as high as it waited (logarithmic),
  // and the one under way.
  drawBeats(one, number, waits, late, normally) {
    const {context, warp, second} = this, {requests} = this.run, mine = requests.ofClient[number];
    const left = one.x + 8, width = one.width - 16, base = one.y + one.height - 6, tall = one.height - 30;
    const low = Math.log10(requests.shortest), high = Math.log10(Math.max(requests.longest, requests.shortest * 10));
    const height = ms => Math.max(2, (Math.log10(Math.max(ms, requests.shortest)) - low) / (high - low) * tall);
    const since = warp.at(Math.max(0, second - BEAT_SECONDS));
    context.fillStyle = colour("line");
    context.fillRect(left, base, width, 1);
    const tallest = new Map();
    for (let k = lowerBound(mine.ends, since), to = lowerBound(mine.ends, this.at); k < to; k++) {
      const i = mine.ended[k], x = Math.round(left + width * (1 - (second - warp.second(requests.end[i])) / BEAT_SECONDS));
      if ((tallest.get(x) ?? -1) < requests.wait[i]) tallest.set(x, requests.wait[i]);
    }
    for (const [x, ms] of tallest) {
      const h = height(ms), slow = ms * 1e3 > normally;
      context.fillStyle = slow ? colour("pause") : clientColour(number);
      context.fillRect(x - 0.75, base - h, slow ? 2.5 : 1.5, h);
    }
    if (waits) {
      context.fillStyle = late ? colour("pause") : colour("dim");
      const h = height(waits / 1e3);
      context.fillRect(left + width - 1, base - h, 3, h);
    }
  }

  drawHost(host) {
    const {film, at, context} = this, {move} = film;
    const role = host.name === move.source ? "source" : "target";
    const state = role === "source" ? film.source(at) : film.target(at);
    this.box(host, colour("host"), colour("edge"), {radius: 10});
    write(context, host.name, host.x + 12, host.y + 16, {size: 13, weight: 650});
    write(context, role, host.x + host.width - 12, host.y + 16, {size: 11.5, align: "right", fill: "dim"});
    if (film.holding(at, host.name)) this.drawHold(host);
    const guest = {x: host.x + 10, y: host.y + 30, width: host.width - 20, height: host.height - 40};
    this.drawGuest(guest, role, state);
  }

  // A host that has no part in this migration.
  drawOther(one) {
    const middle = one.y + one.height / 2;
    if (!this.narrow) this.line([[this.switch.x + this.switch.width, this.switch.y + this.switch.height / 2], [one.x, middle]], colour("line"), 2);
    this.box(one, colour("host"), colour("edge"), {radius: 6});
    write(this.context, one.name, one.x + one.width / 2, middle, {size: 12, align: "center", fill: "dim", most: one.width - 8});
  }

  drawHold(host) {
    const text = this.narrow ? "holds frames" : "▮▮ holds frames for the guest", size = 11;
    this.context.font = `600 ${size}px ${FONT}`;
    const width = this.context.measureText(text).width + 20;
    const y = host.y - (this.narrow ? 22 : 12);
    this.box({x: host.x + host.width / 2 - width / 2, y, width, height: 22}, colour("hold"), null, {radius: 11});
    write(this.context, text, host.x + host.width / 2, y + 11.5, {size, align: "center", fill: "on-bar", weight: 600});
  }

  drawGuest(place, role, state) {
    const words = {none: "", made: "is being put in place", ready: "in place, not active", running: "running", paused: "paused", left: "stopped, kept until it is proved", gone: "deleted"};
    const edges = {running: "run", paused: "pause", ready: "edge", made: "edge", left: "edge", gone: "line", none: "line"};
    const ghost = state === "none" || state === "gone", dashed = state === "ready" || state === "made" || ghost;
    const {context} = this, name = this.film.move.vm ?? "guest";
    this.box(place, ghost ? null : colour("panel"), colour(edges[state]), {dash: dashed ? [5, 4] : null, thick: state === "running" || state === "paused" ? 2.5 : 1.5});
    if (state === "none") return;
    const fill = state === "running" ? "run" : state === "paused" ? "pause" : "dim";
    const sign = {running: "▶", paused: "▮▮", gone: "✕"}[state] ?? "○";
    const used = write(context, `${sign} ${name}`, place.x + 10, place.y + 15, {size: 12.5, fill, weight: 650});
    write(context, words[state], place.x + 20 + used, place.y + 15, {size: 11.5, fill: "dim", most: place.width - used - 26});
    if (state === "gone") return;
    context.globalAlpha = state === "left" || state === "made" ? 0.45 : 1;
    this.drawRam({x: place.x + 10, y: place.y + 28, width: place.width - 20, height: place.height - 38}, role);
    context.globalAlpha = 1;
  }

  drawRam(place, role) {
    const {film, context} = this, cells = film.cellCount;
    if (!cells) {
      this.box(place, colour("never"), null, {radius: 3});
      write(context, "no map of pages recorded", place.x + place.width / 2, place.y + place.height / 2, {size: 11, align: "center", fill: "dim", most: place.width - 8});
      return;
    }
    const columns = Math.ceil(Math.sqrt(cells * place.width / place.height)), rows = Math.ceil(cells / columns);
    const {picture} = this, paint = picture.getContext("2d");
    picture.width = columns;
    picture.height = rows;
    const image = paint.createImageData(columns, rows), state = role === "source" ? film.state : film.arrived;
    const running = role === "target" && film.target(this.at) === "running";
    const names = role === "source" ? ["never", "to-copy", "copied", "dirty", "last"] : running ? ["never", "never", "copied", "copied", "copied"] : ["never", "never", "copied", "dirty", "last"];
    const shades = names.map(name => colour(name).match(/[\d.]+/g).slice(0, 3).map(Number));
    for (let i = 0; i < cells; i++) image.data.set([...shades[state[i]], 255], i * 4);
    paint.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, place.x, place.y, place.width, place.height);
    this.drawMesh(place, columns, rows);
  }

  drawMesh(place, columns, rows) {
    const wide = place.width / columns, tall = place.height / rows, {context} = this;
    if (wide < 3) return;
    context.fillStyle = colour("panel");
    for (let c = 1; c < columns; c++) context.fillRect(place.x + c * wide - 0.3, place.y, 0.6, place.height);
    for (let r = 1; r < rows; r++) context.fillRect(place.x, place.y + r * tall - 0.3, place.width, 0.6);
  }

  // What is on its way between the hosts.
  load() {
    const {film, at} = this, {number, share, crossing} = film.progress(at);
    if (film.byLun) return null;  // all of it goes by the storage
    if (crossing) {
      const round = film.rounds[number];
      const text = round.last ? "last pages" : `round ${round.number}`;
      return {text, more: `${many(round.pages ?? 0)} pages`, share, fill: round.last ? "last" : round.number === 1 ? "copied" : "dirty"};
    }
    const sent = film.mark("pages-sent"), thawed = film.mark("connections-thawed");
    if (sent !== null && thawed !== null && at >= sent && at < thawed) {
      const {connections} = film.marks.get("connections-thawed");
      return {text: "sockets, registers", more: `${many(connections)} connections`, share: (at - sent) / (thawed - sent), fill: "socket"};
    }
    const committed = film.mark("committed"), released = film.mark("frames-released");
    const commit = this.film.phase("commit", film.move.source, 2);
    if (commit !== null && released !== null && at >= commit && at < released) {
      return {text: at < (committed ?? released) ? "commit" : "held frames", more: "", share: (at - commit) / (released - commit), fill: "hold"};
    }
    return null;
  }

  drawWire() {
    const [a, b] = this.hosts, {move} = this.film, {context} = this;
    const there = a.name === move.source ? 1 : -1, y = this.wireY;
    const from = this.narrow ? a.x + a.width / 2 : a.x + a.width, to = this.narrow ? b.x + b.width / 2 : b.x;
    const path = this.narrow ? [[from, a.y + a.height], [from, y], [to, y], [to, b.y + b.height]] : [[from, y], [to, y]];
    const load = this.load(), busy = load !== null;
    this.line(path, busy ? colour(load.fill) : colour("line"), busy ? 3.5 : 2);
    const middle = (from + to) / 2;
    if (!busy) {
      if (this.narrow) return;
      write(context, "migration wire", middle, y + 14, {size: 11, align: "center", fill: "dim"});
      return;
    }
    const head = this.still ? 0.5 : load.share, begin = there > 0 ? from : to, end = there > 0 ? to : from;
    const x = begin + (end - begin) * head;
    context.fillStyle = colour(load.fill);
    context.beginPath();
    context.moveTo(x + there * 9, y);
    context.lineTo(x - there * 5, y - 7);
    context.lineTo(x - there * 5, y + 7);
    context.fill();
    const room = this.narrow ? to - from : to - from - 8;
    write(context, load.text, middle, y - (this.narrow ? 12 : 30), {size: 12, align: "center", weight: 650, fill: "ink", most: room});
    if (load.more && !this.narrow) write(context, load.more, middle, y - 15, {size: 11.5, align: "center", fill: "dim", most: room});
  }

  drawStore() {
    const {store, context, film, at} = this, {move} = film;
    const mounted = film.passed("mounted", at) ? move.target : film.passed("dismounted", at) ? null : move.source;
    for (const host of this.hosts) {
      const busy = film.byLun && host.name === mounted;
      this.line([[store.x + store.width / 2, store.y], [host.x + host.width / 2, host.y + host.height]], colour(busy ? "wire-on" : "line"), busy ? 3 : 2);
    }
    this.box(store, colour("panel"), colour("edge"));
    const out = film.lun("out", at), back = film.lun("in", at), over = film.passed("resumed", at);
    const saved = film.passed("state-saved", at) ? 1 : out, left = over ? 0 : film.passed("pages-received", at) ? 0 : saved - back;
    const text = !film.byLun || over || !saved ? "shared storage" : back ? `from the LUN: ${Math.round(back * 100)} %` : `on the LUN: ${Math.round(saved * 100)} %`;
    context.fillStyle = colour("last");
    context.fillRect(store.x + 3, store.y + store.height - 9, (store.width - 6) * Math.max(left, 0), 6);
    write(context, text, store.x + store.width / 2, store.y + 19, {size: 12, align: "center", weight: 600});
  }

  // An announcement, from the moment when it was sent: along the wires to everybody. How long it is drawn is the
  // replay's; when it begins is recorded.
  drawRipples() {
    const {film, warp, second} = this;
    for (const [at, host] of film.move.announced) {
      const age = second - warp.second(at), from = this.hosts.find(one => one.name === host);
      if (age < 0 || age > RIPPLE_SECONDS || !from) continue;
      const share = age / RIPPLE_SECONDS, hub = [this.switch.x + this.switch.width / 2, this.switch.y + this.switch.height / 2];
      const begin = [from.x + from.width / 2, from.y];
      if (share < 0.4) this.pulse(begin, hub, share / 0.4, "ARP");
      else for (const one of this.clients) this.pulse(hub, [one.x + one.width / 2, one.y + one.height], (share - 0.4) / 0.6, "");
      if (share >= 0.4) for (const other of this.hosts) if (other !== from) this.pulse(hub, [other.x + other.width / 2, other.y], (share - 0.4) / 0.6, "");
    }
  }

  pulse([x0, y0], [x1, y1], share, text) {
    const {context} = this, x = x0 + (x1 - x0) * share, y = y0 + (y1 - y0) * share;
    context.fillStyle = colour("announce");
    context.beginPath();
    context.arc(x, y, 6, 0, 7);
    context.fill();
    if (text) write(context, text, x + 10, y, {size: 12, weight: 650, fill: "announce"});
  }
}
