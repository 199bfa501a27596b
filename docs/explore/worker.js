// Runs Python with the package beside the page, so that the page answers while it computes. A question is
// {name, question}: a function of answer.py and the JSON it takes. The reply is {name, reply}, or {failed}.
"use strict";

let functions;

async function load() {
  const home = new URL("python/", self.location).href;
  importScripts(`${home}pyodide.js`);
  const python = await loadPyodide({ indexURL: home, lockFileURL: `${home}pyodide-lock.json`, packages: ["numpy"] });
  const archive = await fetched("python/package.zip");
  python.unpackArchive(await archive.arrayBuffer(), "zip", { extractDir: "/package" });
  python.FS.writeFile("/package/src/answer.py", await (await fetched("answer.py")).text());
  python.runPython("import sys; sys.path[:0] = ['/package/src', '/package/libraries']");
  return python.pyimport("answer");
}

async function fetched(name) {
  const response = await fetch(new URL(name, self.location));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}

self.onmessage = async ({ data: { name, question } }) => {
  try {
    functions ??= await load();
    const reply = question === undefined ? functions[name]() : functions[name](question);
    self.postMessage({ name, reply });
  } catch (error) {
    self.postMessage({ failed: String(error) });
  }
};
