// Reads files with the modules of the page and prints what they hold.
// Usage: node read_files.mjs PAGE FILE...; a file that is refused is told with its message.
import { readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

const [page, ...files] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${page}/${name}`));
const { parseNpy } = await load("npy.js");
const { parseSafetensors, writeSafetensors } = await load("safetensors.js");

const told = ({ dtype, shape, data }) => ({
  dtype,
  shape,
  array: data.constructor.name,
  data: Array.from(data, (one) => (typeof one === "bigint" || !Number.isFinite(one) ? String(one) : one)),
});

const found = {};
for (const file of files) {
  const bytes = readFileSync(file);
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  try {
    if (file.endsWith(".npy")) {
      found[basename(file)] = told(parseNpy(buffer));
    } else {
      const { tensors, metadata } = parseSafetensors(buffer);
      const entries = [...tensors].map(([name, tensor]) => [name, told(tensor)]);
      found[basename(file)] = { tensors: Object.fromEntries(entries), metadata };
      const own = [...tensors].filter(([, { dtype }]) => !dtype.endsWith("F16"));
      writeFileSync(`${file}.again`, writeSafetensors(new Map(own), metadata));
    }
  } catch (error) {
    found[basename(file)] = { error: error.message };
  }
}
console.log(JSON.stringify(found));
