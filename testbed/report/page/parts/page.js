// Puts the parts together: for each run of the page its timeline and its replay; tabs, theme, print.

class Run {
  constructor(section) {
    this.section = section;
    this.data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    this.requests = new Requests(this.data.requests, this.data.unit_us);
    this.number = this.worst();
    this.timeline = new Timeline(section.querySelector(".timeline"), this);
    const choice = section.querySelector(".choice select"), replay = section.querySelector(".replay");
    if (this.move && replay) {
      this.replay = new Replay(replay, this);
      this.replay.onMoment = at => { this.timeline.cursor = at; this.soon(); };
      this.timeline.onPick = us => { this.replay.stop(); this.replay.fresh = false; this.replay.seekTo(us); };
    } else if (replay) replay.hidden = true;
    if (choice) {
      choice.value = this.number;
      choice.addEventListener("change", () => this.choose(+choice.value));
    }
    this.choose(this.number);
  }

  get move() { return this.data.moves[this.number] ?? null; }

  // The migration with the longest blackout is shown first: it is the one that the figures are of.
  worst() {
    const stood = this.data.moves.map(one => one.pause !== null && one.resume !== null ? one.resume - one.pause : -1);
    return Math.max(0, stood.indexOf(Math.max(...stood)));
  }

  choose(number) {
    this.number = number;
    this.section.querySelectorAll("[data-move]").forEach(one => { one.hidden = +one.dataset.move !== number; });
    if (this.replay) { this.replay.stop(); this.replay.load(); }
    this.timeline.show(this.move && this.move.pause !== null ? "blackout" : "run");
  }

  // The timeline follows the replay, at most once a frame.
  soon() {
    if (this.due) return;
    this.due = requestAnimationFrame(() => { this.due = null; this.timeline.draw(); });
  }

  redraw() {
    this.timeline.draw();
    if (this.replay) this.replay.redraw();
  }
}

const runs = [];
const redrawAll = () => { forgetColours(); runs.forEach(run => { if (!run.section.hidden) run.redraw(); }); };

function chooseTab(tabs, number) {
  tabs.forEach((tab, i) => {
    const chosen = i === number;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
  });
  open(number);
}

// A run is unpacked when it is first looked at.
function open(number) {
  const section = document.querySelectorAll("section.run")[number];
  if (!runs.some(run => run.section === section)) runs.push(new Run(section));
  else redrawAll();
}

function theme() {
  const root = document.documentElement, button = document.querySelector(".theme"), names = ["auto", "light", "dark"];
  let kept = null;
  try { kept = localStorage.getItem("testbed-theme"); } catch { kept = null; }  // a page from a file may have no storage
  const apply = name => {
    name === "auto" ? root.removeAttribute("data-theme") : root.setAttribute("data-theme", name);
    button.textContent = {auto: "◐ auto", light: "☀ light", dark: "☾ dark"}[name];
    button.dataset.now = name;
    redrawAll();
  };
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(button.dataset.now) + 1) % names.length];
    try { localStorage.setItem("testbed-theme", next); } catch { kept = next; }
    apply(next);
  });
  apply(names.includes(kept) ? kept : "auto");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
}

function start() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, number) => {
    tab.addEventListener("click", () => chooseTab(tabs, number));
    tab.addEventListener("keydown", event => {
      const to = {ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: tabs.length - 1}[event.key];
      if (to !== undefined && tabs[to]) { chooseTab(tabs, to); tabs[to].focus(); }
    });
  });
  document.querySelectorAll("[data-open]").forEach(link => link.addEventListener("click", event => {
    event.preventDefault();
    chooseTab(tabs, +link.dataset.open);
    tabs[+link.dataset.open].scrollIntoView({block: "start"});
  }));
  theme();
  tabs.length ? chooseTab(tabs, 0) : open(0);
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; redrawAll(); } });
  // On paper it is light, as wide as the paper, and all runs are there.
  addEventListener("beforeprint", () => {
    document.querySelectorAll("section.run").forEach((section, number) => { section.hidden = false; open(number); });
    document.querySelectorAll("details").forEach(one => { one.open = true; });
    redrawAll();
  });
  addEventListener("afterprint", () => {
    if (tabs.length) chooseTab(tabs, Math.max(0, tabs.findIndex(tab => tab.getAttribute("aria-selected") === "true")));
    redrawAll();
  });
  window.report = {runs, colour};  // for whoever opens the console, and for tests
  document.documentElement.dataset.ready = "yes";
}
