/** The caller: the key, which is kept for this tab alone, its name and role, and what the service offers. */

const STORED = "errata.key";
const ROLES = ["read", "propose", "edit", "admin"];

/**
 * `name` is null where the service has no keys. `fields` are those of a posted edit, `model` is the served name; these, `form`
 * and `hasDryRun` are known when the promise `offer` is fulfilled, which no list waits for.
 */
export const session = {
  name: null,
  role: "read",
  hasKeys: true,
  model: "errata",
  form: "chat",
  context: 2_048, // Tokens of a question and its answer together.
  fields: new Set(),
  hasDryRun: false,
  offer: Promise.resolve(),
};

/** Return the key, or an empty text. */
export function key() {
  return sessionStorage.getItem(STORED) ?? "";
}

/** Keep a key until the tab is closed. */
export function keep(value) {
  sessionStorage.setItem(STORED, value);
}

/** Forget the key. */
export function forget() {
  sessionStorage.removeItem(STORED);
}

/** Return whether the caller may use routes of this role. */
export function may(role) {
  return ROLES.indexOf(session.role) >= ROLES.indexOf(role);
}

/** Read what the service offers from its OpenAPI document: the fields of an edit, and whether edits can be tried. */
export function readSchema(document) {
  session.fields = new Set(Object.keys(document.components?.schemas?.EditIn?.properties ?? {}));
  const parameters = document.paths?.["/v1/edits"]?.post?.parameters ?? [];
  session.hasDryRun = parameters.some((one) => one.name === "dry_run");
}
