// The views by their names. A view is made for an empty stage and has
//
//   files: which of png, svg, csv and json it can be exported as; a method for each but json
//   load(source, state): a promise of what it needs
//   show(loaded, source, state): draws, at first and after every change
//   request(state, source): the request whose answer it shows
//   destroy(): ends what it began, where it began anything
//
// and a sentence about it, of what its rows and columns are: tokens or words.

import * as head from "./head_view.js";
import * as matrix from "./matrix_view.js";
import * as model from "./model_view.js";
import * as statistics from "./statistics_view.js";

export const VIEW_MAKERS = {
  head: { lede: head.lede, create: head.createView },
  matrix: { lede: matrix.lede, create: matrix.createView },
  model: { lede: model.lede, create: model.createView },
  statistics: { lede: statistics.lede, create: statistics.createView },
  rollout: { lede: matrix.rolloutLede, create: matrix.createRollout },
};
