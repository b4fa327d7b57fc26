// What pointer, wheel, keys and buttons do to a heat map.

const STEP = 1.5;
const PAGE = 10;
/** Pixels that a pointer moves before it is a pan. */
const SLACK = 4;

/** Key → how far the cursor goes: rows, columns. */
const MOVES = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  PageUp: [-PAGE, 0],
  PageDown: [PAGE, 0],
  Home: [0, -Infinity],
  End: [0, Infinity],
};

/**
 * @param {object} stage of `makeStage`.
 * @param {import("./matrix_frame.js").Frame} frame
 * @param {object} does
 * @param {(cell: {row: number, column: number}|null) => void} does.read
 * @param {() => void} does.paintSoon
 * @param {() => {row: number, column: number}|null} does.cursor
 * @returns {{end: () => void}}
 */
export function listen({ canvas, buttons }, frame, { read, paintSoon, cursor }) {
  const ended = new AbortController();
  const on = (target, name, does, options = {}) =>
    target.addEventListener(name, does, { signal: ended.signal, ...options });

  const zoom = (factor, ...at) => {
    frame.zoomBy(factor, ...at);
    paintSoon();
  };

  let drag = null;
  on(canvas, "pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moves: false };
    if (frame.zoom > 1) canvas.setPointerCapture(event.pointerId);
    read(frame.cellAt(event.offsetX, event.offsetY));
  });
  on(canvas, "pointermove", (event) => {
    if (!drag || frame.zoom === 1) {
      read(frame.cellAt(event.offsetX, event.offsetY));
      return;
    }
    const [across, down] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.moves ||= Math.hypot(across, down) > SLACK;
    if (!drag.moves) return;
    frame.panBy(across, down);
    Object.assign(drag, { x: event.clientX, y: event.clientY });
    paintSoon();
  });
  for (const name of ["pointerup", "pointercancel"]) on(canvas, name, () => (drag = null));
  on(canvas, "pointerleave", () => {
    if (document.activeElement !== canvas) read(null);
  });

  on(
    canvas,
    "wheel",
    (event) => {
      if (frame.zoom === 1 && event.deltaY > 0) return; // the page goes on scrolling
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0025)), event.offsetX, event.offsetY);
    },
    { passive: false },
  );

  on(canvas, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (MOVES[event.key]) move(MOVES[event.key]);
    else if (event.key === "+" || event.key === "=") zoomAtCursor(STEP);
    else if (event.key === "-") zoomAtCursor(1 / STEP);
    else if (event.key === "0") zoom(0);
    else if (event.key === "Escape") read(null);
    else return;
    event.preventDefault();
  });
  on(canvas, "focus", () => {
    if (!cursor() && canvas.matches(":focus-visible")) read({ row: 0, column: 0 });
  });

  on(buttons.in, "click", () => zoomAtCursor(STEP));
  on(buttons.out, "click", () => zoomAtCursor(1 / STEP));
  on(buttons.all, "click", () => zoom(0));

  function move([down, across]) {
    const from = cursor() ?? { row: 0, column: 0 };
    const within = (index, count) => Math.max(0, Math.min(count - 1, index));
    const to = cursor()
      ? { row: within(from.row + down, frame.rows), column: within(from.column + across, frame.columns) }
      : from;
    frame.reveal(to);
    if (frame.zoom > 1) paintSoon();
    read(to);
  }

  /** Zooms to the cursor, where there is one, and keeps all of its cell in sight. */
  function zoomAtCursor(factor) {
    const cell = cursor();
    if (!cell) {
      zoom(factor);
      return;
    }
    const left = frame.left + (cell.column + 0.5 - frame.x) * frame.cellWidth;
    const top = frame.top + (cell.row + 0.5 - frame.y) * frame.cellHeight;
    zoom(factor, left, top);
    frame.reveal(cell);
  }

  return { end: () => ended.abort() };
}
