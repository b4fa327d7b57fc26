// Attention over HTTP from JavaScript (Node.js 18 or later, nothing to install).
//
//   node examples/javascript/attention.mjs [URL]

const url = process.argv[2] ?? process.env.ATTENTION_URL ?? "http://127.0.0.1:8080";

/** Posts a request and returns the answer. Errors are problem documents: their detail says it. */
async function post(path, body) {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch((error) => fail(`${url}: ${error.cause?.message || error.message}; is it running?`));
  const answer = await response.json();
  if (!response.ok) fail(`${answer.title}: ${answer.detail}`);
  return answer;
}

/** Ends the program with a line of what is wrong. */
function fail(message) {
  console.error(message);
  process.exit(1);
}

/** A tensor as the service takes it: base64 of float32s, little-endian and row by row. */
function encode(shape, numbers) {
  const bytes = Buffer.alloc(4 * numbers.length);
  numbers.forEach((number, i) => bytes.writeFloatLE(number, 4 * i));
  return { dtype: "float32", shape, data: bytes.toString("base64") };
}

/** The numbers of a float32 tensor that the service answered. */
function decode({ data }) {
  const bytes = Buffer.from(data, "base64");
  return Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
}

function printMatrix(name, tensor) {
  const [rows, columns] = tensor.shape;
  const numbers = decode(tensor);
  console.log(`${name} ${rows}x${columns}`);
  for (let row = 0; row < rows; row++) {
    const line = numbers.slice(row * columns, (row + 1) * columns);
    console.log(line.map((number) => "  " + number.toFixed(4)).join(""));
  }
}

// Two queries over three keys and values: shapes [L,D], [S,D] and [S,Dv].
const { output, weights } = await post("/v1/attention", {
  query: encode([2, 2], [1, 0, 0, 1]),
  key: encode([3, 2], [1, 0, 0, 1, 1, 1]),
  value: encode([3, 2], [1, 2, 3, 4, 5, 6]),
  tensor_format: "base64",
});
printMatrix("output", output);
printMatrix("weights", weights);

// What one head of a trained model attends to: one layer and one head are asked for,
// so the weights are [1,1,L,L].
const [layer, head] = [3, 1];
const text = await post("/v1/text/attention", {
  text: "The animal didn't cross the street because it was too tired.",
  layers: [layer],
  heads: [head],
  tensor_format: "base64",
});
const { tokens, special_tokens_mask: special, weights: map } = text.results[0];
console.log("tokens " + tokens.join(" "));

// Between two different words; the marks at both ends collect what a head has no use for.
const numbers = decode(map);
let best = { weight: 0 };
for (let from = 0; from < tokens.length; from++) {
  for (let to = 0; to < tokens.length; to++) {
    const weight = numbers[from * tokens.length + to];
    if (from !== to && !special[from] && !special[to] && weight > best.weight) {
      best = { weight, from, to };
    }
  }
}
console.log(
  `strongest link of layer ${layer}, head ${head}: ` +
    `${tokens[best.from]} -> ${tokens[best.to]} ${best.weight.toFixed(4)}`,
);
