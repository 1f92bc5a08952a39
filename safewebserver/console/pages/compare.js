import { html } from "../lib.js";
export function Compare() { return html`<section class="page"></section>`; }
