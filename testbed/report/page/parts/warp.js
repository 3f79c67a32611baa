// The replay's clock: seconds of the replay against microseconds of the run, faster where little happens, in slow
// motion around the blackout. Piecewise even: within a stretch nothing is hurried.

const SLOWEST = 300;  // what no blackout is, is slowed down by no more

class Warp {
  // knots: [microsecond, second of the replay], both ascending.
  constructor(knots) { this.knots = knots; }

  get length() { return this.knots.at(-1)[1]; }

  at(second) { return this.through(second, 1, 0); }
  second(us) { return this.through(us, 0, 1); }

  through(value, from, to) {
    const {knots} = this;
    if (value <= knots[0][from]) return knots[0][to];
    for (let k = 1; k < knots.length; k++) {
      const a = knots[k - 1], b = knots[k];
      if (value <= b[from]) return b[from] === a[from] ? b[to] : a[to] + (value - a[from]) / (b[from] - a[from]) * (b[to] - a[to]);
    }
    return knots.at(-1)[to];
  }

  // How many times slower than the run a moment is shown.
  slowness(second) {
    const {knots} = this;
    let k = 1;
    while (k < knots.length - 1 && second >= knots[k][1]) k++;
    const us = knots[k][0] - knots[k - 1][0];
    return (knots[k][1] - knots[k - 1][1]) * 1e6 / Math.max(us, 1);
  }

  static even(begin, end) { return new Warp([[begin, 0], [end, Math.max((end - begin) / 1e6, 0.5)]]); }

  // For one migration: each stretch with the seconds that it is worth.
  static of(move, span) {
    const begin = Math.max(0, move.begin - 400000), stretches = [[move.begin, 1.6]];
    const still = us => move.pause !== null && us > move.pause && us < (move.resume ?? move.end);
    const provisioned = move.phases.filter(one => one[1] === "provision").map(one => one[3] ?? move.end);
    if (provisioned.length) stretches.push([Math.max(...provisioned), 2.6]);
    const rounds = move.rounds.filter(one => !one.last), later = Math.max(rounds.length - 1, 1);
    for (const round of rounds) {
      stretches.push([round.begin, 0.35]);
      stretches.push([round.end, round.number === 1 ? 4 : Math.max(0.5, Math.min(1.4, 6 / later))]);
    }
    if (move.pause !== null) {
      stretches.push([move.pause - 300, 1.8], [move.pause, 0.5]);
      const end = move.resume ?? move.end;
      stretches.push([end, 11], [end + 1000, 1.2]);
    }
    for (const [at] of move.announced) stretches.push([at, 0.9]);
    stretches.push([move.end, 1.4]);
    const last = Math.max(move.end, move.announced.at(-1)?.[0] ?? 0);
    stretches.push([Math.min(last + 400000, Math.max(span, last + 1)), 1.4]);
    stretches.sort((a, b) => a[0] - b[0]);
    const knots = [[begin, 0]];
    for (const [us, seconds] of stretches) {
      const [before, second] = knots.at(-1), blackout = us === (move.resume ?? move.end) && before === move.pause;
      const most = blackout ? seconds : (us - before) * SLOWEST / 1e6;
      if (us > before && !still(us)) knots.push([us, second + Math.min(seconds, most)]);
    }
    return new Warp(knots);
  }
}
