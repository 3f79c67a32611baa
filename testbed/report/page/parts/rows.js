// Connections as rows: each of its own, those of a probe that opens new ones all the time together.

class Rows {
  constructor(requests) {
    const {client, probe, connection, wait, count} = requests, longest = new Map();
    const key = i => (client[i] * 256 + probe[i]) * 65536 + (requests.kind(i) === "churn" ? 0 : connection[i]);
    for (let i = 0; i < count; i++) longest.set(key(i), Math.max(longest.get(key(i)) ?? 0, wait[i]));
    const shown = [...longest].sort((a, b) => b[1] - a[1]).slice(0, MOST_ROWS).map(([of]) => of).sort((a, b) => a - b);
    this.left = longest.size - shown.length;
    this.count = shown.length;
    const places = new Map(shown.map((of, row) => [of, row]));
    this.of = Int16Array.from({length: count}, (_, i) => places.get(key(i)) ?? -1);
    this.clients = shown.map(of => Math.floor(of / 65536 / 256));
    this.names = requests.names;
  }

  height(width) { return Math.min(width < 520 ? 12 : 16, Math.max(6, 520 / Math.max(this.count, 1))); }

  // Each client's name once, beside its rows.
  label(context, timeline) {
    const tall = this.height(timeline.canvas.clientWidth);
    for (let row = 0; row < this.count;) {
      let next = row;
      while (next < this.count && this.clients[next] === this.clients[row]) next++;
      const top = timeline.plotTop + row * tall, bottom = timeline.plotTop + next * tall;
      write(context, this.names[this.clients[row]], timeline.left - 8, (top + bottom) / 2, {size: 11.5, align: "right", fill: "dim", most: timeline.left - 10});
      context.fillStyle = colour("line");
      context.fillRect(timeline.left, bottom, timeline.width, 1);
      row = next;
    }
  }
}
