// The libraries under one short name.
export * from "./vendor/preact.js";
