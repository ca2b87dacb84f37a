// Print the HCL files named on stdin as JSON: path -> content. The argument is the folder of the package hcl2json.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { parse } = createRequire(import.meta.url)(process.argv[2]);
const parsed = {};
for (const path of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  parsed[path] = await parse(path, readFileSync(path, "utf8"));
}
process.stdout.write(JSON.stringify(parsed), () => process.exit(0));
