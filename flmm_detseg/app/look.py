"""Style and script of the page's own parts: layers under the pointer, and marks drawn on the picture."""

from __future__ import annotations

STYLE = """
.flmm-board { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 1.2rem; }
@media (max-width: 820px) { .flmm-board { grid-template-columns: 1fr; } }
.flmm-empty { padding: 3rem 1rem; text-align: center; color: var(--body-text-color-subdued);
  border: 1px dashed var(--border-color-primary); border-radius: 8px; }
.flmm-stage { position: relative; width: 100%; margin: .5rem 0; line-height: 0;
  max-width: calc(70vh * var(--wide) / var(--high)); }
.flmm-stage img { width: 100%; height: auto; display: block; border-radius: 4px; user-select: none; margin: 0; }
.flmm-layers, .flmm-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.flmm-layers img { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.flmm-stage canvas { touch-action: none; }
.flmm-board[data-tool="look"] canvas { pointer-events: none; }
.flmm-board:not([data-tool="look"]) canvas { cursor: crosshair; }
.flmm-bar { display: flex; flex-wrap: wrap; gap: .3rem; }
.flmm-board button, .flmm-board .flmm-note { margin: 0 !important; }
.flmm-bar button, .flmm-phrase { font: inherit; font-size: .9rem; line-height: 1.3; cursor: pointer;
  border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .2rem .6rem;
  background: var(--background-fill-primary); color: var(--body-text-color); }
.flmm-bar button.on { background: #1f2937; border-color: #1f2937; color: #fff; }
.flmm-bar button[data-clear] { margin-left: auto; }
.flmm-what { min-height: 1.5rem; font-size: .9rem; margin-top: .4rem; }
.flmm-note { color: var(--body-text-color-subdued); font-size: .85rem; margin: .25rem 0; }
.flmm-warning { background: #fff3bf; color: #5c3c00; border-radius: 6px; padding: .4rem .6rem; font-size: .9rem;
  margin-bottom: .5rem; }
.flmm-right { max-height: 78vh; overflow-y: auto; }
.flmm-turns { list-style: none; padding: 0; margin: 0; }
.flmm-turn { padding: 0 0 .9rem; margin: 0 0 .9rem; border-bottom: 1px solid var(--border-color-primary); }
.flmm-turn:last-child { border-bottom: 0; }
.flmm-said { font-weight: 600; margin-bottom: .3rem; overflow-wrap: anywhere; }
.flmm-answer { line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; }
.flmm-word { border-bottom: 3px solid var(--colour); cursor: pointer; border-radius: 3px 3px 0 0; }
.flmm-word.on { background: var(--colour); color: #fff; }
.flmm-found { display: flex; flex-direction: column; align-items: flex-start; gap: .25rem; margin-top: .4rem; }
.flmm-phrase { display: flex; align-items: center; gap: .5rem; text-align: left; max-width: 100%; }
.flmm-phrase.on { border-color: var(--colour); box-shadow: 0 0 0 1px var(--colour); }
.flmm-phrase.kept { background: var(--background-fill-secondary); }
.flmm-phrase.below { display: none; }
.flmm-chip { flex: none; width: .8rem; height: .8rem; border-radius: 3px; background: var(--colour); }
.flmm-label { overflow-wrap: anywhere; }
.flmm-score { color: var(--body-text-color-subdued); font-size: .8rem; white-space: nowrap; }
.flmm-downloads { font-size: .85rem; margin-top: .4rem; color: var(--body-text-color-subdued); }
.flmm-stream { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 1.2rem; align-items: start; }
@media (max-width: 820px) { .flmm-stream { grid-template-columns: 1fr; } }
.flmm-stream figure { margin: 0; } .flmm-stream img { width: 100%; max-height: 60vh; object-fit: contain;
  object-position: left top; margin: 0; }
.flmm-stream figcaption { font-size: .85rem; line-height: 1.4; margin-top: .4rem; }
.flmm-table { overflow-x: auto; } .flmm-table table, .flmm-table tr { border: 0 !important; }
.flmm-table table { border-collapse: collapse; width: 100%; font-size: .85rem; }
.flmm-table th, .flmm-table td { padding: .25rem .5rem !important; text-align: left; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.flmm-table td:nth-child(1), .flmm-table td:nth-child(2), .flmm-table td:nth-child(8) { white-space: nowrap; }
.flmm-level-l2 b { color: #2b8a3e; } .flmm-level-l1 b { color: #1864ab; } .flmm-level-miss b { color: #c92a2a; }
"""

# Runs once for the board; `element`, `trigger` and `watch` are Gradio's.
SCRIPT = """
const state = {layer: "mask", tool: "look", kept: "", least: 0, turn: "", picture: "", marks: null};
const all = selector => [...element.querySelectorAll(selector)];
const one = selector => element.querySelector(selector);
const none = () => ({points: [], box: null, strokes: [], again: false});
state.marks = none();

function phrases(keys) {
  return keys.map(key => one(`.flmm-phrase[data-key="${key}"]`)).filter(Boolean);
}
function seen(phrase) {
  return phrase.dataset.of !== "detector" || Number(phrase.dataset.score) >= state.least;
}
function show(keys) {
  const board = one(".flmm-board");
  if (!board) return;
  const chosen = phrases(keys).filter(seen);
  const last = all(".flmm-turn").at(-1);
  const layer = chosen.length || state.layer !== "attention" ? state.layer : "";
  const drawn = chosen.length ? chosen : last ? [...last.querySelectorAll(".flmm-phrase")].filter(seen) : [];
  const wanted = drawn.map(phrase => phrase.dataset[layer]).filter(Boolean);
  const place = one(".flmm-layers");
  [...place.children].forEach(image => { if (!wanted.includes(image.dataset.source)) image.remove(); });
  wanted.forEach(source => {
    if ([...place.children].some(image => image.dataset.source === source)) return;
    const image = new Image();
    image.dataset.source = source; image.src = source; image.alt = ""; place.append(image);
  });
  all(".flmm-phrase").forEach(phrase => {
    phrase.classList.toggle("on", chosen.includes(phrase));
    phrase.classList.toggle("kept", state.kept.split(" ").includes(phrase.dataset.key));
    phrase.classList.toggle("below", !seen(phrase));
  });
  all(".flmm-word").forEach(word => word.classList.toggle("on", chosen.length > 0
    && word.dataset.keys.split(" ").some(key => chosen.some(phrase => phrase.dataset.key === key))));
  let what = "";
  if (chosen.length && layer === "attention" && !wanted.length) {
    what = "There is no attention of this: it was not read by the LMM.";
  } else if (chosen.length === 1) {
    const label = chosen[0].querySelector(".flmm-label").textContent, score = Number(chosen[0].dataset.score);
    what = `${label}: ${score.toFixed(2)}, ${chosen[0].title}.`;
  } else if (chosen.length) what = `${chosen.length} regions.`;
  else if (state.layer === "attention") what = "Point at a word to see where the model looked while it wrote it.";
  one(".flmm-what").textContent = what;
  board.dataset.shown = wanted.length;
}
function kept() { return state.kept ? state.kept.split(" ") : []; }
function paint() {
  const canvas = one(".flmm-stage canvas");
  if (!canvas) return;
  const pen = canvas.getContext("2d"), scale = canvas.width / (canvas.clientWidth || canvas.width);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineJoin = pen.lineCap = "round";
  const line = (draw, colour) => {
    [["#fff", 5], [colour, 3]].forEach(([style, width]) => {
      pen.strokeStyle = style; pen.lineWidth = width * scale; draw(); pen.stroke();
    });
  };
  state.marks.strokes.forEach(stroke => line(() => {
    pen.beginPath(); pen.moveTo(...stroke[0]);
    stroke.forEach(point => pen.lineTo(...point)); pen.lineTo(...stroke.at(-1));
  }, "#2f9e44"));
  const box = state.marks.box;
  if (box) line(() => { pen.beginPath(); pen.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]); }, "#2f9e44");
  state.marks.points.forEach(([x, y, label]) => {
    pen.beginPath(); pen.arc(x, y, 5 * scale, 0, 7); pen.fillStyle = label ? "#2f9e44" : "#e03131"; pen.fill();
    pen.lineWidth = 2 * scale; pen.strokeStyle = "#fff"; pen.stroke();
  });
}
function restore() {
  const board = one(".flmm-board");
  if (!board) return;
  if (board.dataset.picture !== state.picture) {
    state.picture = board.dataset.picture; state.marks = none(); state.kept = ""; state.turn = "";
  }
  const last = all(".flmm-turn").at(-1)?.dataset.turn || "";
  if (last !== state.turn) { state.turn = last; state.kept = ""; }
  if (last && !last.startsWith("o")) state.marks = none();
  board.dataset.tool = state.tool;
  all("button[data-tool]").forEach(button => button.classList.toggle("on", button.dataset.tool === state.tool));
  all("[data-layer]").forEach(button => button.classList.toggle("on", button.dataset.layer === state.layer));
  all(".flmm-downloads a").forEach(link => { link.href = `${link.dataset.base}?threshold=${state.least}`; });
  const right = one(".flmm-right");
  right.scrollTop = right.scrollHeight;
  show(kept()); paint();
}
function keysOf(target) {
  const word = target.closest?.(".flmm-word"), phrase = target.closest?.(".flmm-phrase");
  return word ? word.dataset.keys : phrase ? phrase.dataset.key : "";
}
function look(event) { const keys = keysOf(event.target); if (keys) show(keys.split(" ")); }
element.addEventListener("pointerover", look);
element.addEventListener("focusin", look);
element.addEventListener("pointerout", event => { if (keysOf(event.target)) show(kept()); });
element.addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.matches(".flmm-word")) event.target.click();
});
element.addEventListener("click", event => {
  const button = event.target.closest("button"), keys = keysOf(event.target);
  if (keys) { state.kept = state.kept === keys ? "" : keys; show(state.kept ? kept() : []); return; }
  if (button?.dataset.layer) state.layer = button.dataset.layer;
  else if (button?.dataset.tool) state.tool = button.dataset.tool;
  else if (button?.dataset.clear) state.marks = none();
  else return;
  restore();
});
element.addEventListener("flmm-threshold", event => { state.least = Number(event.detail); restore(); });

let gesture = null;
function place(event) {
  const canvas = one(".flmm-stage canvas"), box = canvas.getBoundingClientRect();
  const within = (value, most) => Math.min(Math.max(value, 0), most);
  return [within((event.clientX - box.left) * canvas.width / box.width, canvas.width - 1),
          within((event.clientY - box.top) * canvas.height / box.height, canvas.height - 1)];
}
element.addEventListener("pointerdown", event => {
  if (!event.target.matches(".flmm-stage canvas") || state.tool === "look" || event.button) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  const at = place(event);
  gesture = {from: at};
  if (state.tool === "box") state.marks.box = [...at, ...at];
  else if (state.tool === "brush") state.marks.strokes.push([at]);
  else state.marks.points.push([...at, state.tool === "point" ? 1 : 0]);
  paint();
});
element.addEventListener("pointermove", event => {
  if (!gesture) return;
  const at = place(event);
  if (state.tool === "box") state.marks.box = [...gesture.from, ...at];
  else if (state.tool === "brush") state.marks.strokes.at(-1).push(at);
  paint();
});
element.addEventListener("pointerup", () => {
  if (!gesture) return;
  gesture = null;
  const box = state.tool === "box" ? state.marks.box : null;
  if (box && (Math.abs(box[2] - box[0]) < 1 || Math.abs(box[3] - box[1]) < 1)) {
    state.marks.box = null; paint();  // a click: kept, it would be refused with every further mark
    return;
  }
  trigger("mark", {...state.marks});
  state.marks.again = true;
});
element.addEventListener("pointercancel", () => { gesture = null; });
watch("value", restore);
restore();
"""

# The slider is Gradio's, the board ours.
SEND_THRESHOLD = """(value) => {
  const board = document.querySelector("#board .flmm-board");
  if (board) board.dispatchEvent(new CustomEvent("flmm-threshold", {detail: value, bubbles: true}));
}"""
