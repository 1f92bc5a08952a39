import { html } from "../lib.js";
export function Advanced() { return html`<section class="page"></section>`; }
