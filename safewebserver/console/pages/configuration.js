import { html } from "../lib.js";
export function Configuration() { return html`<section class="page"></section>`; }
