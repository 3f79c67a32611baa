// The clients' requests: the dots of the timeline and the heartbeats of the replay. Times in microseconds.

class Requests {
  constructor(packed, unit) {
    this.names = packed.clients;
    this.kinds = packed.kinds;
    this.total = packed.count;
    const begin = unpack(packed.begin), lasts = unpack(packed.lasts);
    this.count = begin.length;
    this.begin = Float64Array.from(begin, value => value * unit);
    this.end = this.begin.map((value, i) => value + lasts[i] * 1e3);
    this.wait = unpack(packed.wait);  // ms
    this.client = unpack(packed.client);
    this.probe = unpack(packed.probe);
    this.connection = unpack(packed.connection);
    this.answered = unpack(packed.answered);
    const grid = packed.density;
    this.grid = {
      columns: grid.columns, rowsPerDecade: grid.rows_per_decade, shortest: grid.shortest, requests: grid.requests,
      column: unpack(grid.column), row: unpack(grid.row), client: unpack(grid.client), count: unpack(grid.count),
    };
    this.ofClient = this.names.map((_, number) => this.split(number));
    this.longest = this.wait.reduce((most, value) => Math.max(most, value), 0.1);
    this.shortest = this.wait.reduce((least, value) => value > 0 ? Math.min(least, value) : least, this.longest);
  }

  // One client's requests: by their begin with the latest end so far, and by their end.
  split(number) {
    const chosen = [];
    for (let i = 0; i < this.count; i++) if (this.client[i] === number) chosen.push(i);
    const begins = Float64Array.from(chosen, i => this.begin[i]);
    let latest = 0;
    const reach = Float64Array.from(chosen, i => latest = Math.max(latest, this.end[i]));
    const ended = [...chosen].sort((a, b) => this.end[a] - this.end[b]);
    return {chosen, begins, reach, ended, ends: Float64Array.from(ended, i => this.end[i])};
  }

  // For how long the request of a client that has waited longest is under way at a moment; 0 if none is.
  waiting(number, at) {
    const mine = this.ofClient[number];
    let longest = 0;
    for (let k = lowerBound(mine.begins, at) - 1; k >= 0 && mine.reach[k] > at; k--) {
      if (this.end[mine.chosen[k]] > at) longest = Math.max(longest, at - this.begin[mine.chosen[k]]);
    }
    return longest;
  }

  kind(i) { return (this.kinds[this.client[i]] ?? [])[this.probe[i]] || "probe"; }
  // Whether it waits from delivery to delivery, and not for an answer.
  isSteady(i) { return ["open-loop", "udp", "icmp"].includes(this.kind(i)); }

  describe(i) {
    const kind = this.kind(i);
    const what = this.answered[i] ? "" : ", never answered";
    return `${this.names[this.client[i]]} ${kind}, connection ${this.connection[i]}: waited ${duration(this.wait[i] * 1e3)}${what}`;
  }
}
