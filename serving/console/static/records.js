/** Edits out of a file in the browser: JSON lines, a JSON list, or CSV, in the schema of docs/data.md. */

const TEXTS = ["prompt", "question", "target", "subject", "answer", "form", "source", "valid_from", "valid_to", "reason"];
const LISTS = ["aliases", "rephrasings"];
const UNPOSTED = ["locality", "portability", "id", "poster", "approver"]; // Known in files, and not part of a post.

/**
 * Read a text. Returns {records: [{line, edit, faults}], left: names of fields that are known and not posted}.
 * Throws `SyntaxError` for a file that cannot be read at all. `fields` are those that a post may have.
 */
export function readRecords(text, fields) {
  const clean = text.replace(/^\ufeff/, "");
  if (clean.includes("\ufffd")) throw new SyntaxError("the file is not UTF-8 text; convert it, or use `errata import` for Parquet and compressed files");
  const begin = clean.trimStart()[0];
  const raw = begin === "[" ? listed(clean) : begin === "{" ? lines(clean) : csv(clean);
  if (!raw.length) throw new SyntaxError("the file has no records");
  const left = new Set();
  return { records: raw.map((one) => record(one, fields, left)), left: [...left] };
}

function listed(text) {
  const found = JSON.parse(text);
  return found.map((value, index) => ({ line: index + 1, value }));
}

function lines(text) {
  const whole = wholeObject(text);
  if (whole) return whole.map((value, index) => ({ line: index + 1, value }));
  const found = [];
  text.split("\n").forEach((line, index) => {
    if (!line.trim()) return;
    try {
      found.push({ line: index + 1, value: JSON.parse(line) });
    } catch (fault) {
      found.push({ line: index + 1, value: null, fault: `is not JSON: ${fault.message}` });
    }
  });
  return found;
}

/** Return the list of a text that is one object with one list in it, or with one edit; null for JSON lines. */
function wholeObject(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    return null;
  }
  const lists = Object.values(found).filter((value) => Array.isArray(value) && typeof value[0] === "object");
  return "target" in found ? [found] : lists.length === 1 ? lists[0] : [found];
}

function csv(text) {
  const head = text.slice(0, text.indexOf("\n") + 1 || undefined);
  const separator = [",", "\t", ";"].find((sign) => head.includes(sign)) ?? ",";
  const [names, ...rows] = cells(text, separator);
  if (!names.values.includes("target")) throw new SyntaxError("the file is neither JSON nor CSV with a column `target`; docs/data.md has the fields, and `errata data convert` reads other datasets");
  return rows.map(({ line, values }) => {
    if (values.length !== names.values.length) return { line, value: null, fault: `has ${values.length} cells, and the header ${names.values.length}` };
    return { line, ...rowValue(names.values, values) };
  });
}

function rowValue(names, values) {
  const value = {};
  for (const [index, name] of names.entries()) {
    if (values[index] === "") continue;
    try {
      value[name] = LISTS.includes(name) || UNPOSTED.slice(0, 2).includes(name) || name === "messages" ? JSON.parse(values[index]) : values[index];
    } catch {
      return { value: null, fault: `${name} is not a list in JSON` };
    }
  }
  return { value };
}

/** Split CSV into rows of cells; quotes are doubled inside a quoted cell, which may have line breaks. */
function cells(text, separator) {
  const rows = [];
  let [row, cell, isQuoted, line, begin] = [[], "", false, 1, 1];
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0] !== "") rows.push({ line: begin, values: row });
    [row, cell, begin] = [[], "", line];
  };
  for (let i = 0; i < text.length; i += 1) {
    const sign = text[i];
    if (sign === "\n") line += 1;
    if (isQuoted) {
      if (sign !== '"') cell += sign;
      else if (text[i + 1] === '"') cell += text[++i];
      else isQuoted = false;
    } else if (sign === '"' && cell === "") isQuoted = true;
    else if (sign === separator) {
      row.push(cell);
      cell = "";
    } else if (sign === "\n") endRow();
    else if (sign !== "\r") cell += sign;
  }
  if (isQuoted) throw new SyntaxError(`a quote is left open in the row that begins in line ${begin}`);
  if (cell !== "" || row.length) endRow();
  return rows;
}

function record({ line, value, fault }, fields, left) {
  if (fault) return { line, edit: null, faults: [fault] };
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { line, edit: null, faults: ["is no object with fields"] };
  const edit = {};
  const faults = [];
  for (const [name, given] of Object.entries(value)) {
    if (given === null || given === "" || (Array.isArray(given) && !given.length)) continue;
    if (fields.has(name)) edit[name] = typeof given === "number" ? String(given) : given;
    else if (UNPOSTED.includes(name)) left.add(name);
    else faults.push(`${name} is not a field of an edit`);
  }
  withSubject(edit);
  return { line, edit, faults: [...faults, ...faultsOf(edit)] };
}

/** Put the subject in the place of `{}`. */
function withSubject(edit) {
  const put = (text) => (typeof text === "string" && edit.subject ? text.replace("{}", edit.subject) : text);
  for (const name of ["prompt", "question"]) if (edit[name]) edit[name] = put(edit[name]);
  if (Array.isArray(edit.rephrasings)) edit.rephrasings = edit.rephrasings.map(put);
}

/** Find the faults that show without the model; the service finds the others when the edits are posted. */
function faultsOf(edit) {
  const faults = [];
  const given = ["prompt", "question"].filter((name) => edit[name] !== undefined);
  if (edit.messages && given.every((name) => edit[name] === edit.messages.at?.(-1)?.content)) for (const name of given) delete edit[name];
  const asks = ["prompt", "question", "messages"].filter((name) => edit[name] !== undefined);
  if (asks.length !== 1) faults.push(asks.length ? `give one of ${asks.join(" and ")}` : "has no prompt, question or messages");
  if (typeof edit.target !== "string" || !edit.target.trim()) faults.push("has no target");
  for (const name of TEXTS) if (edit[name] !== undefined && typeof edit[name] !== "string") faults.push(`${name} must be a text`);
  for (const name of LISTS) {
    const isList = edit[name] === undefined || (Array.isArray(edit[name]) && edit[name].every((text) => typeof text === "string"));
    if (!isList) faults.push(`${name} must be a list of texts`);
  }
  const asked = edit.prompt ?? edit.question ?? edit.messages?.at?.(-1)?.content;
  if (typeof edit.subject === "string" && typeof asked === "string" && !asked.includes(edit.subject)) {
    faults.push("the subject does not occur in the question, letter by letter");
  }
  if (typeof asked === "string" && asked.includes("{}")) faults.push("the question has {} and no subject to put there");
  return faults;
}
