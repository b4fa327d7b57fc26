// Texts to begin with. Layer and head are those of the default module that show it best.

const PARAGRAPH =
  "A lighthouse keeper wrote the weather into a thick book every evening. She noted the wind, " +
  "the height of the waves and the ships that passed, and when the fog came she noted that too, " +
  "because the harbour master wanted to know how long the horn had been sounding. Years later " +
  "her granddaughter found the book in a chest under the stairs. The ink had faded, but the " +
  "numbers could still be read, and from them she drew a map of every storm that her grandmother " +
  "had watched. It hangs in the museum by the harbour now, next to the old brass horn.";

/**
 * @typedef {object} Example
 * @property {string} name
 * @property {string} shows what to look for.
 * @property {Partial<import("./state.js").State>} state
 */

/** @param {import("./state.js").State} state @returns {Example|undefined} that of its texts. */
export function exampleOf({ text, pair }) {
  return EXAMPLES.find(({ state }) => state.text === text && (state.pair ?? "") === pair);
}

/** @type {Example[]} */
export const EXAMPLES = [
  {
    name: "A pronoun",
    shows: "“it” looks for the animal that it stands for.",
    state: {
      text: "The animal didn't cross the street because it was too tired.",
      view: "head",
      layer: 5,
      head: 11,
      held: ["q10"],
    },
  },
  {
    name: "Question and answer",
    shows: "“Who” looks for the name, “first” for the year.",
    state: {
      text: "Who wrote the first computer program?",
      pair: "Ada Lovelace wrote the first computer program in 1843.",
      view: "matrix",
      unit: "word",
      layer: 5,
      head: 4,
    },
  },
  {
    name: "A sentence, twice",
    shows: "Some heads look back to where the same word stood before.",
    state: {
      text: "The parrot repeats every word. The parrot repeats every word.",
      view: "head",
      layer: 2,
      head: 9,
    },
  },
  {
    name: "A paragraph",
    shows: "All heads at once: some look one word back, many at one place only.",
    state: { text: PARAGRAPH, view: "model", layer: 0, head: 2, unit: "word" },
  },
];
