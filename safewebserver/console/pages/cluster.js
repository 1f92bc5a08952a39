import { html } from "../lib.js";
/** @param {{edit: boolean}} props */
export function ClusterPanel({ edit }) { return html`${edit ? "" : ""}`; }
