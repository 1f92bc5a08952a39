// Logging in.
import { html, useState } from "../lib.js";
import { t } from "../i18n.js";
import { ask } from "../api.js";
import { Button } from "../parts.js";

/** @param {{done: () => void}} props */
export function Login({ done }) {
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await ask("POST", "session", { user, password });
      setPassword("");
      done();
    } catch (error) {
      const kind = /** @type {any} */ (error).kind;
      setProblem(kind === "credentials" ? t("login.wrong") : kind === "connection" ? t("login.silent") : String(/** @type {any} */ (error).message));
    } finally {
      setBusy(false);
    }
  };
  return html`<main class="login"><form onSubmit=${send} aria-label=${t("login.title")}>
    <h1>SafeKit</h1><p class="muted">${t("login.text", { host: location.hostname })}</p>
    <label class="field">${t("login.user")}<input name="user" autocomplete="username" required value=${user} autofocus
      onInput=${(/** @type {any} */ e) => setUser(e.target.value)} /></label>
    <label class="field">${t("login.password")}<input name="password" type="password" autocomplete="current-password" required value=${password}
      onInput=${(/** @type {any} */ e) => setPassword(e.target.value)} /></label>
    ${problem && html`<p class="note bad" role="alert">${problem}</p>`}
    <button type="submit" class="button primary wide" disabled=${busy || null}>${t("login.go")}</button>
    <p class="muted small">${t("login.help")}</p>
    ${location.protocol === "http:" && html`<p class="muted small">${t("login.clear")}</p>`}</form></main>`;
}
