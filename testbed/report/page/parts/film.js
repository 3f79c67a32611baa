// What was so at a moment of a migration, from its recorded events: who runs, which pages have crossed, what is
// going on. Only between the begin and the end of a round is something drawn evenly: the order of its pages is
// the order in which they were sent, ascending, their pace within the round was not recorded.

const NEVER = 0, TO_COPY = 1, COPIED = 2, DIRTY = 3, LAST = 4;

class Film {
  constructor(move) {
    this.move = move;
    this.marks = new Map(move.marks.map(([name, , at, fields]) => [name, {at, ...fields}]).reverse());
    this.rounds = move.rounds;
    this.maps = this.rounds.map(round => round.map && this.cells(round.map));
    this.cellCount = this.maps.reduce((most, map) => Math.max(most, map ? map.length : 0), 0);
    this.orders = this.maps.map(map => map ? [...map.keys()].filter(i => map[i]) : []);
    this.cellPages = this.cellCount && move.ram_pages ? Math.ceil(move.ram_pages / this.cellCount) : 0;
    this.state = new Uint8Array(this.cellCount);
    this.arrived = new Uint8Array(this.cellCount);
    this.returned = move.outcome !== "completed";
    this.byLun = move.lun.length > 0 || this.marks.has("state-saved");
    this.captions = this.tell();
  }

  cells(map) {
    const value = unpack(map.value), count = unpack(map.count), made = new Uint8Array(map.cells);
    let at = 0;
    for (let i = 0; i < value.length; i++) { made.fill(value[i], at, at + count[i]); at += count[i]; }
    return made;
  }

  mark(name) { const found = this.marks.get(name); return found ? found.at : null; }
  passed(name, at) { const when = this.mark(name); return when !== null && at >= when; }

  phase(name, host, which) {
    const found = this.move.phases.find(one => one[1] === name && one[0] === host);
    return found ? found[which] : null;
  }

  // Which round is under way or was last, and how much of it has crossed.
  progress(at) {
    let number = -1;
    this.rounds.forEach((round, i) => { if (at >= round.begin) number = i; });
    if (number < 0) return {number, share: 0, crossing: false};
    const {begin, end} = this.rounds[number];
    return {number, share: Math.min((at - begin) / Math.max(end - begin, 1), 1), crossing: at < end};
  }

  // How much of a saved state lies on the LUN ("out"), or has come from it ("in"): what was last told.
  lun(way, at) {
    const told = this.move.lun.filter(one => one[1] === way), done = told.findLast(one => one[0] <= at);
    return done ? done[2] / Math.max(done[3], 1) : 0;
  }

  // Fills `state` (the source's RAM) and `arrived` (what the target has) for a moment.
  pages(at) {
    const {number, share} = this.progress(at);
    this.state.fill(NEVER);
    this.arrived.fill(NEVER);
    const first = this.orders[0] ?? [];
    for (const cell of first) this.state[cell] = TO_COPY;
    for (let k = 0; k <= number; k++) {
      const order = this.orders[k], kind = this.rounds[k].last ? LAST : COPIED;
      if (k > 0) for (const cell of order) this.state[cell] = DIRTY;
      const byLun = this.byLun && this.rounds[k].last;
      const sent = k < number ? order.length : Math.floor(order.length * (byLun && share < 1 ? this.lun("out", at) : share));
      const come = byLun ? Math.floor(order.length * (this.passed("pages-received", at) ? 1 : this.lun("in", at))) : sent;
      for (let i = 0; i < sent; i++) this.state[order[i]] = kind;
      for (let i = 0; i < come; i++) this.arrived[order[i]] = kind;
    }
    // When a round has ended, the tracker tells what was written meanwhile: that is what the next one sends.
    if (number >= 0 && share >= 1 && number + 1 < this.rounds.length) for (const cell of this.orders[number + 1]) this.state[cell] = DIRTY;
  }

  // The guest at the source, then at the target: "none", "made", "ready", "running", "paused", "left", "gone".
  source(at) {
    const {move} = this;
    if (move.pause === null || at < move.pause) return "running";
    if (move.resume === null || at < move.resume) return move.resume === null && this.passed("committed", at) ? "left" : "paused";
    if (this.returned) return "running";
    const deleted = this.phase("delete", move.source, 3);
    return deleted !== null && at >= deleted ? "gone" : "left";
  }

  target(at) {
    const {move} = this, begin = this.phase("provision", move.target, 2);
    if (begin === null || at < begin) return "none";
    if (this.returned) return at >= (move.resume ?? move.end) ? "none" : this.made(at);
    if (move.resume !== null && at >= move.resume) return "running";
    return this.made(at);
  }

  made(at) {
    const end = this.phase("provision", this.move.target, 3);
    return end !== null && at >= end ? "ready" : "made";
  }

  // Where the switch sends the guest's frames: as it was seen to learn, else as it was last announced.
  direction(at) {
    const {move} = this;
    const learned = move.learned.findLast(one => one[0] <= at);
    if (learned) return learned[1];
    if (move.relearned !== null && !this.returned) return at >= move.relearned ? move.target : move.source;
    return move.announced.findLast(one => one[0] <= at)?.[1] ?? move.source;
  }

  // Whether a host holds frames: the source from the cut on, the target as soon as it was announced and they come
  // to it; both until they are given to the guest.
  holding(at, host) {
    const {move} = this, over = this.mark("frames-released") ?? this.mark("running-again");
    const since = host === move.source ? this.mark("cut") : this.mark("announced");
    return move.held !== 0 && since !== null && at >= since && (over === null || at < over);
  }

  tell() {
    const {move} = this, {source, target} = move, told = [];
    const say = (at, text) => { if (at !== null && at !== undefined) told.push({at, text}); };
    say(this.phase("setup", source, 2), `${source} and ${target} agree on a migration.`);
    say(this.phase("provision", source, 2) ?? this.phase("provision", target, 2), `A guest is put in place at ${target}: it has its RAM and its network, and does not run.`);
    for (const round of this.rounds) {
      if (round.last) continue;
      say(round.begin, round.number === 1 ? `All of its memory crosses while it runs: ${many(round.pages)} pages.` : `Round ${round.number}: the ${many(round.pages)} pages that it wrote meanwhile cross again.`);
      say(round.end, `Round ${round.number} is over. ${many(round.dirty)} pages were written while it went on.`);
    }
    say(this.mark("pause-asked"), "Few enough are left. New connections wait; the guest is asked to stop.");
    say(move.pause, `The guest stands still at ${source}. The blackout begins.`);
    say(this.mark("cut"), `Its port at ${source} is cut: frames for it are held.`);
    say(this.mark("pages-sent"), `The last ${many(this.marks.get("pages-sent")?.pages ?? 0)} pages have left.`);
    say(this.mark("devices-sent"), "Its registers and its sockets have left.");
    say(this.mark("state-saved"), "All of it lies on the LUN.");
    say(this.mark("dismounted"), `${source} has let go of the LUN.`);
    say(this.mark("mounted"), `${target} has the LUN.`);
    say(this.mark("silenced"), `${source} lets nothing of it out any more.`);
    say(this.mark("pages-received"), `The last pages are in place at ${target}.`);
    say(this.mark("connections-thawed"), `${many(this.marks.get("connections-thawed")?.connections ?? 0)} connections are rebuilt at ${target}.`);
    const announcers = new Set();
    for (const [at, host] of move.announced) {
      say(at, announcers.has(host) ? `${host} announces the guest once more.` : `${host} announces the guest: the network learns where it is${host === target ? " now" : " again"}.`);
      announcers.add(host);
    }
    if (move.learned.length) for (const [at, port] of move.learned) say(at, `The switch learns that the guest is at ${port}.`);
    else say(move.relearned, `The switch learns that the guest is at ${target}.`);
    say(this.mark("verified"), "The two copies are equal.");
    say(this.mark("claimed"), `The storage says: it is ${target}'s.`);
    say(this.mark("committed"), `Commit: from here on the guest is ${target}'s.`);
    say(this.mark("opened"), `Its port at ${target} is open.`);
    say(this.mark("frames-released"), "The frames that were held are given to it, in their order.");
    say(this.mark("resumed"), `The guest runs at ${target}. The blackout is over.`);
    say(this.mark("running-again"), `Taken back: the guest runs on at ${source}.`);
    if (!this.returned) {
      say(this.phase("delete", source, 2), `What is left at ${source} is held against the copy once more.`);
      say(this.phase("delete", source, 3), move.deleted === false ? `What was left at ${source} could not be removed as a whole.` : `The guest at ${source} is deleted. Nothing of it is left there.`);
    }
    return told.sort((a, b) => a.at - b.at);
  }

  caption(at) {
    const number = this.captions.findLastIndex(one => one.at <= at);
    return {number, text: number < 0 ? "The guest runs and serves its clients." : this.captions[number].text};
  }

  // The five pictures of a live migration; where a mode has no such moment, the picture is left out.
  chapters() {
    const {move} = this, again = this.rounds.find(one => !one.last && one.number === 2);
    const first = this.rounds.find(one => !one.last);
    const found = [
      [this.phase("provision", move.target, 3) ?? this.phase("provision", move.target, 2), "Provisioned", "in place at the target, not active"],
      [first ? first.begin + (first.end - first.begin) * 0.5 : null, "Memory copied", "while the guest writes on"],
      [again ? again.begin : null, "Dirty pages again", "until little is left"],
      [move.pause, "Paused", "for the final copy"],
      this.returned ? [move.resume, "Taken back", "runs on at the source"] : [move.resume === null ? null : Math.max(this.phase("delete", move.source, 3) ?? 0, move.resume), "Active at the target", "the original is deleted"],
    ];
    return found.map(([at, name, what], i) => ({at, name, what, number: i + 1})).filter(one => one.at !== null && one.at !== undefined);
  }
}
