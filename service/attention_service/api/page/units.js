// What the rows and columns of the matrices are called: tokens or words, as the text has them.

/**
 * @typedef {object} Unit
 * @property {string} label what the text says there, with spaces and unseen characters marked.
 * @property {string} raw the token as the vocabulary writes it, or the word.
 * @property {number|null} segment 0 for the text, 1 for its pair, null for special tokens.
 * @property {boolean} special whether it stands in no text.
 */

const SPACE = "␣";
const NAMED = new Map([[" ", SPACE], ["\n", "↵"], ["\t", "⇥"], ["\r", "␍"]]);
/** Joiners and selectors of variants, which are part of a sign, where they stand alone. */
const UNSEEN_ALONE = /^[\u200d\ufe00-\ufe0f]+$/u;
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}\p{Cs}\uFFFE\uFFFF]/gu;

/**
 * The units of one result.
 *
 * @param {object} result of POST /v1/text/attention, as JSON.
 * @param {string[]} texts the text and, if there is one, its pair.
 * @returns {Unit[]}
 */
export function unitsOf(result, texts) {
  const characters = texts.map((text) => Array.from(text)); // offsets count code points
  const { words } = result;
  const raws = words ? words.text : result.tokens;
  const { offsets, segments } = words ?? result;
  const special = words ? words.special_mask : result.special_tokens_mask;
  return raws.map((raw, index) => {
    const isSpecial = Boolean(special[index]);
    const text = characters[segments[index] ?? 0] ?? [];
    const label = isSpecial ? visible(raw) : labelOf(raw, text, offsets[index]);
    return { label, raw, segment: segments[index], special: isSpecial };
  });
}

/**
 * How much of its texts a result is about, as it tells where tokens stand.
 *
 * @param {object} result of POST /v1/text/attention.
 * @param {string[]} texts as for `unitsOf`.
 * @returns {number} 1 where nothing but spaces comes after the last tokens.
 */
export function shareOf({ offsets, segments }, texts) {
  const ends = texts.map(() => 0);
  offsets.forEach(([, stop], index) => {
    const of = segments[index] ?? 0;
    ends[of] = Math.max(ends[of], stop);
  });
  const lengths = texts.map((text) => Array.from(text.trimEnd()).length);
  const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);
  return Math.min(1, sum(ends) / sum(lengths));
}

function labelOf(raw, text, [start, stop]) {
  const span = text.slice(start, stop).join("");
  if (!span) return visible(raw) || SPACE;
  if (UNSEEN_ALONE.test(span)) return codes(span);
  const isMarked = /^[Ġ▁]/u.test(raw) && /\s/u.test(text[start - 1] ?? "");
  return (isMarked ? SPACE : "") + visible(span);
}

/**
 * A text with every character to be seen: spaces and line ends by marks, others by their number.
 *
 * @param {string} text
 * @returns {string}
 */
export function visible(text) {
  return text.replace(UNSEEN, (character) => {
    const code = character.codePointAt(0);
    if (NAMED.has(character)) return NAMED.get(character);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x200d) return character; // joins the parts of one sign
    return codes(character);
  });
}

/** Characters by their numbers. */
function codes(text) {
  const number = (character) => character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return Array.from(text, (character) => `⟨${number(character)}⟩`).join("");
}

/** A unit for a sentence: its label, quoted, and its place where the label says too little. */
export function named(unit, index) {
  return `“${isolated(unit.label)}” (${index})`;
}

/** Keeps the direction of a text from the text around it (Unicode's FSI and PDI). */
export function isolated(text) {
  return `\u2068${text}\u2069`;
}
