// What every explorer does on the page: build its controls, draw again when one moves, read values out.
//
// An app has `start` (its first state), `prepare(state, data)` (what follows from it), `controls`, and
// `draw(state, data)`, which gives { picture, table, sentence }. Nothing here knows what is drawn.

let made = 0;

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// Each maker returns { node, show(state) }: show brings the control up to date with the state.
const makers = {
  slider(control, get, set) {
    const id = `explorer-${(made += 1)}`;
    const input = element("input", { type: "range", id, min: control.min, max: control.max, step: control.step });
    const output = element("output", { htmlFor: id });
    const read = control.read ?? ((state) => state[control.id]);
    const write = control.write ?? ((state, value) => ({ ...state, [control.id]: value }));
    input.addEventListener("input", () => set(write(get(), Number(input.value))));
    const node = element("div", { className: "slider" }, element("label", { htmlFor: id }, control.label), output, input);
    const show = (state) => {
      input.value = read(state);
      output.textContent = control.show(Number(input.value), state);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    return { node, show };
  },

  choice(control, get, set) {
    const name = `explorer-${(made += 1)}`;
    const several = control.several === true;
    const boxes = control.options.map(([value, label]) => {
      const box = element("input", { type: several ? "checkbox" : "radio", name, value });
      box.addEventListener("change", () => {
        const chosen = boxes.filter(({ box: b }) => b.checked).map(({ value: v }) => v);
        set({ ...get(), [control.id]: several ? chosen : value });
      });
      return { box, value, node: element("label", {}, box, label) };
    });
    const node = element("fieldset", {}, element("legend", {}, control.label), ...boxes.map((b) => b.node));
    const show = (state) => {
      for (const { box, value } of boxes) {
        box.checked = several ? state[control.id].includes(value) : state[control.id] === value;
      }
    };
    return { node, show };
  },

  button(control, get, set) {
    const node = element("button", { type: "button", textContent: control.label });
    node.addEventListener("click", () => set(control.press(get())));
    const show = (state) => {
      node.disabled = control.usable ? !control.usable(state) : false;
    };
    return { node, show };
  },

  // Counts state[id] up to its end, one step at a time.
  play(control, get, set) {
    const node = element("button", { type: "button", textContent: control.label });
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      node.textContent = control.label;
    };
    const step = () => {
      if (get()[control.id] >= control.max) return stop();
      return set({ ...get(), [control.id]: get()[control.id] + 1 });
    };
    node.addEventListener("click", () => {
      if (timer) return stop();
      if (get()[control.id] >= control.max) set({ ...get(), [control.id]: 0 });
      timer = setInterval(step, control.every);
      node.textContent = "Pause";
      return undefined;
    });
    return { node, show: (state) => state[control.id] >= control.max && timer && stop() };
  },

  row(control, get, set) {
    const parts = control.controls.map((part) => makers[part.kind](part, get, set));
    const node = element("div", { className: "buttons" }, ...parts.map((part) => part.node));
    return { node, show: (state) => parts.forEach((part) => part.show(state)) };
  },

  fold(control, get, set) {
    const parts = control.controls.map((part) => makers[part.kind](part, get, set));
    const node = element("details", {}, element("summary", {}, control.label), ...parts.map((part) => part.node));
    return { node, show: (state) => parts.forEach((part) => part.show(state)) };
  },
};

// Arrow keys and the pointer read the parts of a picture that have something to say.
function readValues(frame, readout) {
  let here = null;
  const spots = () =>
    [...frame.querySelectorAll("[data-say]")].map((node) => {
      const [row, column] = node.dataset.at.split(",").map(Number);
      return { node, row, column };
    });
  const say = (spot) => {
    frame.querySelectorAll(".here").forEach((node) => node.classList.remove("here"));
    here = spot && { row: spot.row, column: spot.column };
    if (!spot) return;
    spot.node.classList.add("here");
    readout.textContent = spot.node.dataset.say;
  };
  const keys = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  frame.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    const all = spots();
    if (!here) return void say(all[0]);
    const [down, right] = keys[event.key];
    const along = (s) => (s.row - here.row) * down + (s.column - here.column) * right;
    const across = (s) => Math.abs((s.row - here.row) * right) + Math.abs((s.column - here.column) * down);
    const ahead = all.filter((s) => along(s) > 0).sort((a, b) => along(a) + 9 * across(a) - along(b) - 9 * across(b));
    if (ahead.length) say(ahead[0]);
  });
  frame.addEventListener("pointerover", (event) => {
    const node = event.target.closest("[data-say]");
    if (node) say(spots().find((spot) => spot.node === node));
  });
  return () => here && say(spots().find((s) => s.row === here.row && s.column === here.column) ?? null);
}

export function start(app, root) {
  const data = JSON.parse(root.querySelector(".explorer-data").textContent);
  const frame = root.querySelector(".explorer-picture");
  const readout = root.querySelector(".explorer-readout");
  let state = app.prepare(app.start, data);
  frame.tabIndex = 0;
  frame.setAttribute("role", "application"); // so that a screen reader leaves the arrow keys to it
  const readAgain = readValues(frame, readout);
  const get = () => state;
  const set = (next) => {
    state = next;
    refresh();
  };
  const controls = app.controls.map((control) => ({ ...makers[control.kind](control, get, set), shown: control.shown }));
  function refresh() {
    const drawn = app.draw(state, data);
    frame.innerHTML = drawn.picture;
    root.querySelector(".explorer-table").innerHTML = drawn.table;
    root.querySelector(".explorer-sentence").textContent = drawn.sentence;
    for (const { node, show, shown } of controls) {
      show(state);
      node.hidden = shown ? !shown(state) : false;
    }
    readAgain();
  }
  root.querySelector(".explorer-controls").replaceChildren(...controls.map((control) => control.node));
  root.classList.add("alive");
  refresh();
}
