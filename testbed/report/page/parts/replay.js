// The replay's controls: play and pause, a slider, chapters, speed, and what is being told.

const STEP_SECONDS = 1.6;

class Replay {
  constructor(root, run) {
    this.root = root;
    this.run = run;
    this.stage = new Stage(root.querySelector("canvas"), run);
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.onMoment = () => {};
    const find = name => root.querySelector(`.${name}`);
    Object.assign(this, {playButton: find("play"), slider: find("slider"), clock: find("clock"), caption: find("caption"), pace: find("pace"), chapters: find("chapters"), steps: find("steps"), speed: find("speed"), slow: find("slow"), cell: find("cell")});
    this.playButton.addEventListener("click", () => this.playing ? this.stop() : this.play());
    this.slider.addEventListener("input", () => { this.stop(); this.seek(+this.slider.value); });
    this.slow.addEventListener("change", () => this.load(this.at));
    root.addEventListener("keydown", event => {
      if (event.key === " " && !["BUTTON", "SELECT", "INPUT"].includes(event.target.tagName)) { event.preventDefault(); this.playButton.click(); }
    });
    this.load();
  }

  get at() { return this.warp.at(this.second); }

  // Take up the chosen migration; stay at a moment where one is given.
  load(at = null) {
    const {move} = this.run;
    this.film = new Film(move);
    this.warp = this.slow.checked ? Warp.of(move, this.run.data.span) : Warp.even(Math.max(0, move.begin - 300000), Math.max(move.end, move.announced.at(-1)?.[0] ?? 0) + 300000);
    this.slider.max = this.warp.length;
    this.slider.step = this.warp.length / 4000;
    this.cell.textContent = this.film.cellPages ? `a cell is ${many(this.film.cellPages)} page${this.film.cellPages > 1 ? "s" : ""} of 4 KiB` : "";
    this.listChapters();
    this.listSteps();
    const blackout = move.pause !== null && move.resume !== null ? move.pause + (move.resume - move.pause) * 0.3 : move.begin;
    this.seek(this.warp.second(at ?? blackout));
    this.fresh = at === null;
  }

  listChapters() {
    this.chapterList = this.film.chapters();
    this.chapters.replaceChildren(...this.chapterList.map(one => {
      one.button = element("button", {type: "button", class: "chapter", onclick: () => { this.fresh = false; this.seekTo(one.at + 1); }}, element("b", {}, `${one.number} ${one.name}`), element("span", {}, one.what));
      return one.button;
    }));
  }

  listSteps() {
    const {move} = this.run, zero = move.pause ?? move.begin;
    this.steps.replaceChildren(...this.film.captions.map(one => {
      one.item = element("li", {}, element("button", {type: "button", onclick: () => { this.stop(); this.seekTo(one.at + 0.5); }}, element("time", {}, signed(one.at - zero)), ` ${one.text}`));
      return one.item;
    }));
  }

  seekTo(us) { this.seek(this.warp.second(us)); }

  seek(second) {
    this.second = Math.min(Math.max(second, 0), this.warp.length);
    this.show();
  }

  play() {
    if (this.fresh || this.second >= this.warp.length - 0.01) this.second = 0;
    this.fresh = false;
    this.playing = true;
    this.playButton.textContent = "❚❚ Pause";
    this.before = null;
    this.reduced.matches ? this.stepOn() : requestAnimationFrame(now => this.tick(now));
  }

  stop() {
    this.playing = false;
    this.playButton.textContent = "▶ Play";
    clearTimeout(this.timer);
  }

  tick(now) {
    if (!this.playing) return;
    if (this.before !== null) this.seek(this.second + Math.min(now - this.before, 200) / 1e3 * +this.speed.value);
    this.before = now;
    if (this.second >= this.warp.length) return this.stop();
    requestAnimationFrame(again => this.tick(again));
  }

  // For who wants no motion: from one event to the next.
  stepOn() {
    if (!this.playing) return;
    const next = this.film.captions.find(one => one.at > this.at + 1);
    if (!next) return this.stop();
    this.seekTo(next.at + 1);
    this.timer = setTimeout(() => this.stepOn(), STEP_SECONDS * 1e3 / +this.speed.value);
  }

  show() {
    const {move} = this.run, zero = move.pause ?? move.begin, {number, text} = this.film.caption(this.at);
    this.slider.value = this.second;
    this.slider.setAttribute("aria-valuetext", `${signed(this.at - zero)}: ${text}`);
    this.clock.textContent = signed(this.at - zero);
    const slowness = this.warp.slowness(this.second) / +this.speed.value;
    this.pace.textContent = slowness > 1.5 ? `slow motion 1:${many(Math.round(slowness))}` : slowness > 0.8 ? "as it was" : `${digits(1 / slowness)} times faster`;
    if (this.caption.textContent !== text) this.caption.textContent = text;
    if (this.current !== number) {
      this.film.captions.forEach((one, i) => one.item.classList.toggle("now", i === number));
      this.film.captions.forEach((one, i) => one.item.classList.toggle("past", i < number));
      this.current = number;
    }
    const chapter = this.chapterList.findLast(one => one.at <= this.at + 1);
    this.chapterList.forEach(one => one.button.setAttribute("aria-current", one === chapter ? "step" : "false"));
    this.stage.draw(this.film, this.warp, this.second, this.reduced.matches);
    this.onMoment(this.at);
  }

  redraw() { this.stage.draw(this.film, this.warp, this.second, this.reduced.matches); }
}
